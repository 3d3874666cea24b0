"""How likely does a model find given responses? Batches of responses, and log-probs at the tokens that matter only.

Shared by SFT and RL, so that both, and the sampler, compute one probability in one way (`sampler.scaled_log_probs`).
"""
import math
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from nanoverify.sampler import scaled_log_probs
from nanoverify.support.cpu import in_parallel, workers

LOGITS = 2 ** 26  # largest number of logits at once: 256 MB in fp32
ROUND = 32  # on a CPU the bf16 products are compiled for each shape; lengths rounded up make few shapes: SFT takes 0.77 of the time


def micro_batches(lengths: list[int], budget: int, count: int = 1) -> list[list[int]]:
    """Indices in groups of at most `budget` tokens (a longer sequence has one of its own), about as many in each; a multiple of `count`
    groups where there is so much to share. The longest sequences come first in each."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    number = min(count * math.ceil(sum(lengths) / (budget * count)), len(lengths))
    while True:  # until each fits
        groups, filled = [[] for _ in range(number)], [0] * number
        for i in order:
            least = filled.index(min(filled))
            groups[least].append(i)
            filled[least] += lengths[i]
        if all(tokens <= budget or len(group) == 1 for group, tokens in zip(groups, filled)):
            return groups
        number = min(number + count, len(lengths))


def room(prompt: list[int], response: list[int]) -> int:
    """Tokens that a sequence takes in `join`."""
    return -(-(len(prompt) + len(response) - 1) // ROUND) * ROUND


@dataclass
class Packed:
    """Sequences one after the other, without padding between them, and the tokens whose log-probs are wanted."""
    ids: torch.Tensor  # (1, T)
    lengths: list[int]  # of the sequences; T in all
    places: torch.Tensor  # (N,): logits here predict the wanted tokens, which come one later
    targets: torch.Tensor  # (N,): the wanted tokens


def join(rows: list[tuple[list[int], list[int]]], masks: list[list[int]], device) -> Packed:
    """(prompt ids, response ids) and a 0/1 mask per response: wanted are the tokens of responses masked 1.

    Each sequence is filled up to a multiple of ROUND.
    """
    ids, lengths, places, targets = [], [], [], []
    for (prompt, response), mask in zip(rows, masks):
        first = len(ids) + len(prompt) - 1  # this place predicts the response's first token
        places += [first + t for t, wanted in enumerate(mask) if wanted]
        targets += [id for id, wanted in zip(response, mask) if wanted]
        lengths.append(room(prompt, response))
        whole = (prompt + response)[:-1]
        ids += whole + [0] * (lengths[-1] - len(whole))
    return Packed(to_device([ids], device), lengths, to_device(places, device), to_device(targets, device))


def to_device(numbers: list, device):
    """A tensor of whole numbers; the host does not wait for a GPU until it is there."""
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


def read(signs: list[dict[str, torch.Tensor]]) -> list[dict[str, float]]:
    """Numbers from the device, all at once: the host waits for it a single time."""
    if not any(signs):
        return signs
    values = torch.stack([torch.stack([value.float() for value in row.values()]) for row in signs]).tolist()
    return [dict(zip(row, numbers)) for row, numbers in zip(signs, values)]


def backward(model, sizes: list[int], budget: int, work, parameters: list) -> list[dict[str, float]]:
    """Add the gradients of all micro-batches to `parameters`. -> their vital signs

    sizes: tokens of each sequence. work(indices) -> (loss, {name: number as a tensor without gradient}).
    Each worker adds up the gradients of its own parts, which are fixed beforehand, so that the sum is the same
    each time.
    """
    parts = micro_batches(sizes, budget, workers(model))
    count = min(workers(model), len(parts))
    if count <= 1:
        results = []
        for part in parts:
            loss, signs = work(part)
            loss.backward()
            results.append(signs)
        return read(results)

    def share(parts):
        total, results = [torch.zeros_like(parameter) for parameter in parameters], []
        for part in parts:
            loss, signs = work(part)
            for mine, gradient in zip(total, torch.autograd.grad(loss, parameters)):
                mine += gradient
            results.append(signs)
        return total, read(results)
    shares = in_parallel(share, [parts[i::count] for i in range(count)], count)
    for total, _ in shares:
        for parameter, gradient in zip(parameters, total):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return [signs for _, results in shares for signs in results]


def in_chunks(function, tensors, vocab_size: int):
    """function(*tensors) on slices whose logits fit into LOGITS, joined. Slices are computed again in the backward pass."""
    size = max(LOGITS // vocab_size, 1)
    if len(tensors[0]) <= size:
        return function(*tensors)
    slices = zip(*(tensor.split(size) for tensor in tensors))
    return torch.cat([checkpoint(function, *some, use_reentrant=False, preserve_rng_state=False) for some in slices])


def all_log_probs(hidden, weight, temperature: float = 1.0):
    """Log-probs of the whole vocabulary: hidden (N, D), final states; weight (V, D), lm_head -> (N, V), fp32."""
    with torch.autocast(hidden.device.type, enabled=False):
        return scaled_log_probs(hidden.float() @ weight.float().T, temperature)


def token_log_probs(hidden, weight, ids, vocab_size: int, temperature: float = 1.0):
    """Log-prob of each id: hidden (N, D), the states before the ids (N,) -> (N,), fp32.

    vocab_size: ids that exist; the others are padding of the weight matrix.
    """
    weight = weight[:vocab_size]

    def chunk(hidden, ids):
        return all_log_probs(hidden, weight, temperature).gather(-1, ids[:, None])[:, 0]
    return in_chunks(chunk, (hidden, ids), vocab_size)


def kl_divergence(hidden, weight, base_hidden, base_weight, vocab_size: int):
    """KL(policy || base) of each token, (N,), over the whole vocabulary."""
    weight, base_weight = weight[:vocab_size], base_weight[:vocab_size]

    def chunk(hidden, base_hidden):
        log_probs, base = all_log_probs(hidden, weight), all_log_probs(base_hidden, base_weight)
        return (log_probs.exp() * (log_probs - base)).sum(-1)
    return in_chunks(chunk, (hidden, base_hidden), vocab_size)
