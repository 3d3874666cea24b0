"""How likely does a model find given responses? Batches of responses, and log-probs at the tokens that matter only.

Shared by SFT and RL, so that both, and the sampler, compute one probability in one way (`sampler.scaled_log_probs`).
"""
import math

import torch
from torch.utils.checkpoint import checkpoint

from nanoverify.parallel import in_parallel, workers
from nanoverify.sampler import scaled_log_probs

LOGITS = 2 ** 26  # largest number of logits at once: 256 MB in fp32


def micro_batches(lengths: list[int], budget: int, count: int = 1) -> list[list[int]]:
    """Indices in groups of at most `budget` tokens (a longer sequence has one of its own), about as many in each; a multiple of `count`
    groups where there is so much to share. The longest sequences come first in each."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    number = min(count * math.ceil(sum(lengths) / (budget * count)), len(lengths))
    while True:
        groups, filled = [[] for _ in range(number)], [0] * number
        for i in order:
            least = filled.index(min(filled))
            groups[least].append(i)
            filled[least] += lengths[i]
        if all(tokens <= budget or len(group) == 1 for group, tokens in zip(groups, filled)):
            return groups
        number += 1


def join(rows: list[tuple[list[int], list[int]]], masks: list[list[int]], device):
    """(prompt ids, response ids) and a 0/1 mask per response -> ids (1, T), one sequence behind the other; select (1, T - 1), True
    where the NEXT token is masked 1, since logits at t predict token t + 1; and the sequences' lengths in ids[:, :-1]."""
    ids = [id for prompt, response in rows for id in prompt + response]
    select = [flag for (prompt, _), mask in zip(rows, masks) for flag in [0] * len(prompt) + list(mask)]
    lengths = [len(prompt) + len(response) for prompt, response in rows]
    return torch.tensor([ids], device=device), torch.tensor([select[1:]], dtype=torch.bool, device=device), [*lengths[:-1], lengths[-1] - 1]


def backward(model, lengths: list[int], budget: int, work, parameters: list) -> list:
    """work(indices) -> (loss, found), for each micro-batch of sequences of these lengths. Adds the gradients of all losses to `parameters`. -> [found]

    On a CPU several at a time: with two workers SFT takes 0.65 of the time that two threads in each operation take.
    """
    parts = micro_batches(lengths, budget, workers(model))
    count = min(workers(model), len(parts))
    if count <= 1:
        def one(part):
            loss, found = work(part)
            loss.backward()
            return found
        return in_parallel(one, parts, 1)

    def gradients(part):
        loss, found = work(part)
        return torch.autograd.grad(loss, parameters), found
    results = in_parallel(gradients, parts, count)
    for found, _ in results:  # in the parts' order, so that the sum is the same each time
        for parameter, gradient in zip(parameters, found):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return [found for _, found in results]


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


@torch.no_grad()
def log_probs_and_entropy(hidden, weight, ids, vocab_size: int, temperature: float = 1.0):
    """`token_log_probs` without gradient, and the entropy of each id's whole distribution. -> (N,), (N,)."""
    def chunk(hidden, ids):
        log_probs = all_log_probs(hidden, weight, vocab_size, temperature)
        entropy = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(-1)  # clamped, for 0 * -inf is NaN
        return log_probs.gather(-1, ids[:, None])[:, 0], entropy
    return in_chunks(chunk, (hidden, ids), weight.shape[0])


def kl_divergence(hidden, weight, base_hidden, base_weight, vocab_size: int):
    """KL(policy || base) of each token, (N,), over the whole vocabulary."""
    def chunk(hidden, base_hidden):
        log_probs, base = all_log_probs(hidden, weight, vocab_size), all_log_probs(base_hidden, base_weight, vocab_size)
        return ((log_probs.exp() * (log_probs - base).nan_to_num(0.0)).sum(-1),)
    return in_chunks(chunk, (hidden, base_hidden), weight.shape[0])[0]
