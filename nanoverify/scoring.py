"""How likely does a model find given responses? Batches of responses, and log-probs at the tokens that matter only.

Shared by SFT and RL, so that both, and the sampler, compute one probability in one way (`sampler.scaled_log_probs`).
"""
import math

import torch
from torch.utils.checkpoint import checkpoint

from nanoverify.parallel import in_parallel, workers
from nanoverify.sampler import scaled_log_probs

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


def join(rows: list[tuple[list[int], list[int]]], masks: list[list[int]], device):
    """(prompt ids, response ids) and a 0/1 mask per response -> ids, targets, select, all (1, T), and the sequences' lengths. One sequence is
    behind the other; targets are the ids that follow, since logits at t predict token t + 1; select is True where the target is masked 1.
    Each sequence is filled up to a multiple of ROUND."""
    ids, targets, select, lengths = [], [], [], []
    for (prompt, response), mask in zip(rows, masks):
        whole = prompt + response
        fill = [0] * (room(prompt, response) - len(whole) + 1)
        ids += whole[:-1] + fill
        targets += whole[1:] + fill
        select += [0] * (len(prompt) - 1) + list(mask) + fill
        lengths.append(len(whole) - 1 + len(fill))
    return torch.tensor([ids], device=device), torch.tensor([targets], device=device), torch.tensor([select], dtype=torch.bool, device=device), lengths


def backward(model, sizes: list[int], budget: int, work, parameters: list) -> list:
    """work(indices) -> (loss, found), for each micro-batch of sequences of these sizes. Adds the gradients of all losses to `parameters`. -> [found]

    Each worker adds up the gradients of its own parts, which are fixed beforehand, so that the sum is the same each time.
    """
    parts = micro_batches(sizes, budget, workers(model))
    count = min(workers(model), len(parts))
    if count <= 1:
        results = []
        for part in parts:
            loss, found = work(part)
            loss.backward()
            results.append(found)
        return results

    def share(parts):
        total, results = [torch.zeros_like(parameter) for parameter in parameters], []
        for part in parts:
            loss, found = work(part)
            for mine, gradient in zip(total, torch.autograd.grad(loss, parameters)):
                mine += gradient
            results.append(found)
        return total, results
    shares = in_parallel(share, [parts[i::count] for i in range(count)], count)
    for total, _ in shares:
        for parameter, gradient in zip(parameters, total):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return [found for _, results in shares for found in results]


def in_chunks(function, tensors, vocab_size: int):
    """function(*tensors) on slices whose logits fit into LOGITS, joined. Slices are computed again in the backward pass."""
    size = max(LOGITS // vocab_size, 1)
    if len(tensors[0]) <= size:
        return function(*tensors)
    parts = [checkpoint(function, *slices, use_reentrant=False) for slices in zip(*(tensor.split(size) for tensor in tensors))]
    return tuple(torch.cat(columns) for columns in zip(*parts))


def all_log_probs(hidden, weight, vocab_size: int, temperature: float = 1.0):
    """Log-probs of the whole vocabulary: hidden (N, D), final states; weight (V, D), lm_head -> (N, V), fp32."""
    with torch.autocast(hidden.device.type, enabled=False):
        return scaled_log_probs(hidden.float() @ weight.float().T, vocab_size, temperature)


def token_log_probs(hidden, weight, ids, vocab_size: int, temperature: float = 1.0):
    """Log-prob of each id: hidden (N, D), the states before the ids (N,) -> (N,), fp32."""
    def chunk(hidden, ids):
        return (all_log_probs(hidden, weight, vocab_size, temperature).gather(-1, ids[:, None])[:, 0],)
    return in_chunks(chunk, (hidden, ids), weight.shape[0])[0]


def kl_divergence(hidden, weight, base_hidden, base_weight, vocab_size: int):
    """KL(policy || base) of each token, (N,), over the whole vocabulary."""
    def chunk(hidden, base_hidden):
        log_probs, base = all_log_probs(hidden, weight, vocab_size), all_log_probs(base_hidden, base_weight, vocab_size)
        return ((log_probs.exp() * (log_probs - base).nan_to_num(0.0)).sum(-1),)
    return in_chunks(chunk, (hidden, base_hidden), weight.shape[0])[0]
