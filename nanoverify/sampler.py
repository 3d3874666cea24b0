"""Sampling with a key/value cache. Token ids in, token ids out: no text, no rewards.

A step is a pipeline of small functions: logits -> log-probabilities -> token. Rows are independent and move freely:
each prompt is read once and copied to its samples; a row that ends leaves, the last row takes its place, and
waiting prompts fill the free rows. So the batch stays full and nothing is computed for finished text.
"""
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from nanoverify.files import InputError


@dataclass
class Sample:
    """One response. ids end with the stop id if `finished`; otherwise the token limit cut it."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of each id, under the distribution it was drawn from
    finished: bool = False


SLOTS = 32  # a cache grows and shrinks by so many tokens


class KVCache:
    """Keys and values of `rows` rows; row b holds lengths[b] tokens in S slots. Written in place; up to N rows may come back.

    S follows the longest row in steps of SLOTS, so that the products of attention read one block of memory without gaps:
    they take a quarter (bf16) to half (fp32) of the time on a CPU.
    """

    def __init__(self, config, rows: int, device, dtype):
        shape = (rows, config.num_key_value_heads, 0, config.head_dim)
        self.k = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.v = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.rows = rows
        self.window = 0  # slots in use: the longest row, known without asking the device

    def reserve(self, T: int, rows: int = 0):
        """Fit the slots to T more tokens of the longest row, and hold so many rows at least. Slots alone shrink only by more than SLOTS,
        so that they do not swing. Rows no longer in use are not taken along and only what is new is zeroed: sampling 512 rows of the
        default is 1.19 to 1.25 times as fast."""
        slots, rows = -(-(self.window + T) // SLOTS) * SLOTS, max(rows, self.rows)
        held, _, now, _ = self.k[0].shape
        if now - SLOTS <= slots <= now and rows <= held:
            return
        for tensors in (self.k, self.v):
            for i, old in enumerate(tensors):
                tensors[i] = old.new_empty(rows, old.shape[1], slots, old.shape[3])
                tensors[i][:held, :, : self.window] = old[:rows, :, : self.window]
                tensors[i][:, :, self.window:] = 0  # what is masked must still be a number
                tensors[i][held:] = 0

    def positions(self, T):
        return self.lengths[: self.rows, None] + torch.arange(T, device=self.lengths.device)  # (B, T)

    def mask(self, T):
        """0 where a token may look and -inf elsewhere, (B, 1, T, S)."""
        k = self.k[0]
        hidden = torch.arange(k.shape[2], device=k.device) > self.positions(T)[:, None, :, None]
        return torch.zeros(hidden.shape, device=k.device, dtype=k.dtype).masked_fill_(hidden, float("-inf"))

    def append(self, layer, k, v):
        """Write T new tokens per row behind its others; all keys and values so far, (B, K, S, E)."""
        for cached, new in ((self.k[layer], k), (self.v[layer], v)):
            if new.shape[2] == 1:
                rows = torch.arange(self.rows, device=new.device)
                cached[rows, :, self.lengths[: self.rows]] = new[:, :, 0].to(cached.dtype)
            else:
                assert self.window == 0, "several tokens at once only into an empty cache"
                cached[: self.rows, :, : new.shape[2]] = new
        return self.k[layer][: self.rows], self.v[layer][: self.rows]

    def advance(self, tokens=1):
        """Count what was appended: one number for all rows, or (B,) into an empty cache."""
        self.lengths[: self.rows] += tokens
        self.window = self.window + tokens if isinstance(tokens, int) else int(tokens.max())

    def resize(self, rows: int):
        """Only the first `rows` rows count from now on."""
        self.rows = rows
        self.window = int(self.lengths[:rows].max()) if rows else 0

    def copy_rows(self, source: "KVCache", rows: list[int], to: list[int]):
        """Rows `rows` of `source` (may be this cache) are written over rows `to`; call `resize` afterwards."""
        width = source.window
        self.reserve(max(width - self.window, 0), max(to) + 1)
        for mine, theirs in ((self.k, source.k), (self.v, source.v)):
            for cached, new in zip(mine, theirs):
                cached[to, :, :width] = new[rows, :, :width]
        self.lengths[to] = source.lengths[rows]


def scaled_log_probs(logits, vocab_size: int, temperature: float):
    """log softmax(logits / temperature) in fp32 over the ids that exist. logits (..., V) -> (..., V).

    The one function that sampler and trainer share: ids from `vocab_size` on are padding of the weight matrix.
    """
    logits = logits.float() / temperature
    if vocab_size < logits.shape[-1]:
        logits = logits.masked_fill(torch.arange(logits.shape[-1], device=logits.device) >= vocab_size, float("-inf"))
    return logits.log_softmax(-1)


def keep_top(log_probs, top_k: int, top_p: float):
    """Keep the k likeliest tokens (0: all), then the smallest set of at least `top_p` mass; renormalise. (B, V)."""
    if top_k:
        smallest = log_probs.topk(min(top_k, log_probs.shape[-1])).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < smallest, float("-inf")).log_softmax(-1)
    if top_p < 1:
        ordered, order = log_probs.sort(-1, descending=True)
        probs = ordered.exp()
        beyond = probs.cumsum(-1) - probs >= top_p  # the mass before this token is enough already; the first one stays
        log_probs = ordered.masked_fill(beyond, float("-inf")).gather(-1, order.argsort(-1)).log_softmax(-1)
    return log_probs


def draw(log_probs, generator):
    """One id per row, (B,), by inverting the distribution function: the first id whose cumulative mass exceeds u."""
    cumulative = log_probs.exp().cumsum(-1)
    u = torch.rand(log_probs.shape[0], 1, device=log_probs.device, generator=generator)
    # just below the total, so that rounding never leads behind the last id that has any mass
    return torch.searchsorted(cumulative, u * cumulative[:, -1:] * (1 - 1e-6), right=True)[:, 0]


def next_token(logits, vocab_size, temperature, top_k, top_p, generator):
    """ids (B,) and their log-probs (B,). Temperature 0 is greedy: all mass on one token, log-prob 0."""
    if temperature == 0:
        ids = scaled_log_probs(logits, vocab_size, 1.0).argmax(-1)
        return ids, torch.zeros(ids.shape, device=ids.device)
    log_probs = keep_top(scaled_log_probs(logits, vocab_size, temperature), top_k, top_p)
    ids = draw(log_probs, generator)
    return ids, log_probs.gather(-1, ids[:, None])[:, 0]


def next_logits(model, hidden):
    """Logits behind final states (B, D), (B, V), in the precision of the weights even under autocast."""
    with torch.autocast(hidden.device.type, enabled=False):
        return model.lm_head(hidden.to(model.lm_head.weight.dtype))


def prefill(model, prompts: list[list[int]]):
    """Read the prompts: the cache of their tokens and the logits that follow each, (P, V)."""
    weight = model.lm_head.weight
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=weight.device)
    width = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts], device=weight.device)  # (P, T)
    mixed = torch.is_autocast_enabled(weight.device.type)
    cache = KVCache(model.config, len(prompts), weight.device, torch.get_autocast_dtype(weight.device.type) if mixed else weight.dtype)
    cache.reserve(width)
    hidden = model.hidden(ids, cache=cache)  # (P, T, D)
    cache.advance(lengths)
    return cache, next_logits(model, hidden[torch.arange(len(prompts), device=weight.device), lengths - 1])


def decode(model, ids, cache):
    """Read one more token of every row, ids (B,): the logits that follow, (B, V)."""
    cache.reserve(1)
    hidden = model.hidden(ids[:, None], cache=cache)  # (B, 1, D)
    cache.advance()
    return next_logits(model, hidden[:, 0])


@torch.inference_mode()
def generate(model, prompts: list[list[int]], samples_per_prompt: int, max_new_tokens: int, stop_ids, vocab_size: int,
             temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, batch_size: int = 256,
             progress: str = "") -> list[list[Sample]]:
    """Samples for each prompt, in the prompts' order: [prompt][sample]. The same arguments give the same text.
    Under autocast, cache and layers are in its precision; logits and log-probs never are.

    batch_size: rows decoded together. progress: the label of a tqdm bar, none if empty.
    InputError: a prompt is empty, or does not fit into the context together with `max_new_tokens`.
    """
    context, device = model.config.max_position_embeddings, model.lm_head.weight.device
    for i, prompt in enumerate(prompts):
        if not prompt or len(prompt) + max_new_tokens > context:
            raise InputError(f"prompt {i + 1} of {len(prompts)} has {len(prompt)} tokens; with --max-new-tokens {max_new_tokens} "
                             f"it does not fit into the model's context of {context}")
    generator = torch.Generator(device).manual_seed(seed)
    samples = [[Sample() for _ in range(samples_per_prompt)] for _ in prompts]
    # Long prompts first, neighbours of like length: little padding, and the largest memory use comes at once.
    waiting = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    capacity = max(batch_size // samples_per_prompt, 1) * samples_per_prompt
    capacity = min(capacity, len(prompts) * samples_per_prompt)
    if not capacity:
        return samples
    cache, active = None, []  # active[b]: the Sample that row b writes
    last = torch.zeros(capacity, dtype=torch.long, device=device)  # the token to feed next
    stops = torch.tensor(sorted(stop_ids), device=device)
    bar = tqdm(total=len(prompts) * samples_per_prompt, desc=progress, disable=not progress, leave=False)

    while active or waiting:
        free = (capacity - len(active)) // samples_per_prompt
        if waiting and free and (not active or free * samples_per_prompt >= capacity // 4):
            group, waiting = waiting[:free], waiting[free:]
            read, logits = prefill(model, [prompts[i] for i in group])
            cache = cache or KVCache(model.config, capacity, device, read.k[0].dtype)
            new = [sample for i in group for sample in samples[i]]
            rows = list(range(len(active), len(active) + len(new)))
            cache.copy_rows(read, [p for p in range(len(group)) for _ in range(samples_per_prompt)], rows)
            del read  # its memory is free while the rows are decoded
            logits = logits.repeat_interleave(samples_per_prompt, 0)  # (new rows, V)
            active += new
            cache.resize(len(active))
        else:
            rows = list(range(len(active)))
            logits = decode(model, last[: len(active)], cache)  # (B, V)
        ids, logprobs = next_token(logits, vocab_size, temperature, top_k, top_p, generator)
        last[rows[0]: rows[0] + len(rows)] = ids
        ended = torch.isin(ids, stops).tolist()
        done = []
        for row, token, logprob, end in zip(rows, ids.tolist(), logprobs.tolist(), ended):
            sample = active[row]
            sample.ids.append(token)
            sample.logprobs.append(logprob)
            sample.finished = end
            if end or len(sample.ids) == max_new_tokens:
                done.append(row)
        if done:
            bar.update(len(done))
            keep = len(active) - len(done)
            holes = [row for row in done if row < keep]
            movers = sorted(set(range(keep, len(active))) - set(done))
            if holes:
                cache.copy_rows(cache, movers, holes)
                last[holes] = last[movers]
                for hole, mover in zip(holes, movers):
                    active[hole] = active[mover]
            del active[keep:]
            cache.resize(keep)
    bar.close()
    return samples
