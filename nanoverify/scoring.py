"""How likely are given responses? Log-probs at the tokens that matter, and their gradients.

SFT and RL share this file. So both compute a probability in the same way as the sampler
(`sampler.scaled_log_probs`). Letters as in model.py.
"""
import math
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from nanoverify.sampler import scaled_log_probs
from nanoverify.support.cpu import in_parallel, workers
from nanoverify.support.kernels import autocast, few_kernels, head_dtype, product

LOGITS = {"cpu": 2 ** 26, "cuda": 2 ** 28}  # most logits at once: 256 MB, 1 GB in fp32
# Lengths are rounded up to a multiple of this, so that there are few shapes: a CPU compiles its
# bf16 products for each shape.
ROUND = 32


def micro_batches(lengths: list[int], budget: int, count: int = 1) -> list[list[int]]:
    """Indices in groups of at most `budget` tokens, with about as many tokens in each.

    A longer sequence has a group of its own. The number of groups is a multiple of `count`, if
    there are enough sequences. The longest sequences come first in each group.
    """
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
    """Sequences one after the other, and the tokens whose log-probs are wanted."""
    ids: torch.Tensor  # (1, T)
    lengths: list[int]  # of the sequences; T in all
    places: torch.Tensor  # (N,): logits here predict the wanted tokens, which come one later
    targets: torch.Tensor  # (N,): the wanted tokens


def join(rows: list[tuple[list[int], list[int]]], masks: list[list[int]], device) -> Packed:
    """Pack rows of (prompt ids, response ids). Wanted are the response tokens masked 1.

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
    ids, places, targets = (to_device(x, device) for x in ([ids], places, targets))
    return Packed(ids, lengths, places, targets)


def to_device(numbers: list, device):
    """A tensor of whole numbers; the host does not wait for a GPU until it is there."""
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


def read(signs: list[dict[str, torch.Tensor]]) -> list[dict[str, float]]:
    """Numbers from the device, all at once: the host waits for it a single time."""
    if not any(signs):
        return signs
    rows = [torch.stack([value.float() for value in row.values()]) for row in signs]
    return [dict(zip(row, numbers)) for row, numbers in zip(signs, torch.stack(rows).tolist())]


def backward(model, sizes: list[int], budget: int, work,
             parameters: list) -> list[dict[str, float]]:
    """Add the gradients of all micro-batches to `parameters`. -> their vital signs

    sizes: tokens of each sequence. work(indices) -> (loss, {name: number as a tensor without
    gradient}). Each worker adds up the gradients of its own micro-batches, which are fixed
    beforehand, so that the sum is the same each time.
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

    def one_worker(parts):
        total, results = [torch.zeros_like(parameter) for parameter in parameters], []
        for part in parts:
            loss, signs = work(part)
            for mine, gradient in zip(total, torch.autograd.grad(loss, parameters)):
                mine += gradient
            results.append(signs)
        return total, read(results)

    done = in_parallel(one_worker, [parts[i::count] for i in range(count)], count)
    for total, _ in done:
        for parameter, gradient in zip(parameters, total):
            add_gradient(parameter, gradient)
    return [signs for _, results in done for signs in results]


def add_gradient(parameter, gradient):
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def rows_at_once(weight) -> int:
    """Rows whose logits fit into LOGITS. weight (V, D)"""
    return max(LOGITS[weight.device.type] // len(weight), 1)


class TokenLogProbs(torch.autograd.Function):
    """log softmax(hidden @ weight.T / temperature) at one id of each row.

    The logits of all rows never exist at once. With g = d loss / d log-prob of the id, the gradient
    of the row's logits is g * (1 at the id - probability) / temperature. If there are several
    chunks, the backward pass computes their logits a second time.
    """

    @staticmethod
    def forward(ctx, hidden, weight, ids, temperature: float):
        """hidden (N, D), weight (V, D), ids (N,) -> (N,)"""
        ctx.dtype, ctx.temperature = head_dtype(weight), temperature
        low, parts, size = weight.to(ctx.dtype), [], rows_at_once(weight)
        for rows, chosen in zip(hidden.split(size), ids.split(size)):
            logits = product(rows, low.T, ctx.dtype)
            parts.append(chosen_log_probs(logits, chosen, temperature))
        logprobs, totals = (torch.cat(part) for part in zip(*parts))
        kept = logits if len(parts) == 1 else None
        ctx.save_for_backward(hidden, weight, ids, logprobs, totals, kept)
        return logprobs

    @staticmethod
    def backward(ctx, upstream):
        hidden, weight, *rows, kept = ctx.saved_tensors
        low, of_hidden, of_weight = weight.to(ctx.dtype), [], None
        chunks = zip(*(x.split(rows_at_once(weight)) for x in (hidden, *rows, upstream)))
        for rows, ids, logprobs, totals, g in chunks:
            logits = product(rows, low.T, ctx.dtype) if kept is None else kept
            slopes = logit_slopes(logits, ids, logprobs, totals, g, ctx.temperature, ctx.dtype)
            of_hidden.append(product(slopes, low, ctx.dtype))
            more = product(slopes.T, rows, ctx.dtype)
            of_weight = more if of_weight is None else of_weight.add_(more)
        return torch.cat(of_hidden).to(hidden.dtype), of_weight.to(weight.dtype), None, None


@few_kernels
def chosen_log_probs(logits, ids, temperature: float):
    """logits (N, V), ids (N,) -> log-probs of the ids, and log sum exp(logits / temperature)."""
    logprobs = scaled_log_probs(logits, temperature).gather(-1, ids[:, None])[:, 0]
    return logprobs, logits.gather(-1, ids[:, None])[:, 0] / temperature - logprobs


@few_kernels
def logit_slopes(logits, ids, logprobs, totals, g, temperature: float, dtype):
    """d loss / d logits, (N, V), for g = d loss / d logprobs, (N,)."""
    scaled = logits if temperature == 1 else logits / temperature
    g = g / temperature
    slopes = (scaled - totals[:, None]).exp_().mul_(-g[:, None]).to(dtype)
    return slopes.scatter_(-1, ids[:, None], (g * (1 - logprobs.exp()))[:, None].to(dtype))


def token_log_probs(hidden, weight, ids, vocab_size: int, temperature: float = 1.0):
    """Log-prob of each id: hidden (N, D), the states before the ids (N,) -> (N,), fp32.

    vocab_size: ids that exist; the others are padding of the weight matrix.
    """
    with autocast(weight.device):  # the precision of logits is that of the sampler
        return TokenLogProbs.apply(hidden, weight[:vocab_size], ids, temperature)


def kl_divergence(hidden, weight, base_hidden, base_weight, vocab_size: int):
    """KL(policy || base) of each token, (N,), over the whole vocabulary.

    If there are several chunks, the backward pass computes them again.
    """
    weight, base_weight = weight[:vocab_size], base_weight[:vocab_size]

    def log_probs(hidden, weight):
        return scaled_log_probs(hidden.float() @ weight.float().T, 1.0)

    def chunk(hidden, base_hidden):
        ours, theirs = log_probs(hidden, weight), log_probs(base_hidden, base_weight)
        return (ours.exp() * (ours - theirs)).sum(-1)

    with torch.autocast(hidden.device.type, enabled=False):
        size = rows_at_once(weight)
        if len(hidden) <= size:
            return chunk(hidden, base_hidden)
        chunks = zip(hidden.split(size), base_hidden.split(size))
        return torch.cat([checkpoint(chunk, *some, use_reentrant=False, preserve_rng_state=False)
                          for some in chunks])
