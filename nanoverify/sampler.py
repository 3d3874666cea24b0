"""Sampling with a key/value cache. Token ids in, token ids out: no text, no rewards.

A step is a pipeline of small functions: logits -> log-probabilities -> token. Rows are independent and move freely:
each prompt is read once and copied to its samples; a row that ends leaves, the last row takes its place, and
waiting prompts fill the free rows. So the batch stays full and nothing is computed for finished text.
On a CPU each worker (`support/cpu.py`) has a batch of its own, with its share of the prompts.
"""
import random
import threading
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from tqdm import tqdm

from nanoverify.support.cpu import in_parallel, workers
from nanoverify.support.decoding import Replay, decode, fuse, next_logits
from nanoverify.support.files import InputError
from nanoverify.support.kernels import few_kernels, low_dtype


@dataclass
class Sample:
    """One response. ids end with the stop id if `finished`; otherwise the token limit cut it."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of each id, under the distribution it was drawn from
    finished: bool = False


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn, and when they end."""
    max_new_tokens: int
    stop_ids: frozenset[int]
    vocab_size: int  # ids that exist; the others are padding of the weight matrix
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


SLOTS = 32  # a cache grows and shrinks by this many tokens
ROWS = 32  # rows are decoded in multiples of this
CHECK = {"cpu": 1, "cuda": 16}  # steps between two looks at which rows have ended: at each look the host waits for the device
READ = 2 ** 14  # tokens of prompts that are read at once, padding included
BLOCK, LARGE = 512, 8192  # a vocabulary of more than LARGE ids is searched in blocks

FIXED = {"cuda"}  # where the cache has all of its slots from the beginning


class KVCache:
    """Keys and values of `rows` rows; row b holds lengths[b] tokens in S slots. Written in place.

    With `slots` they are all there from the beginning, and the memory never moves: a recorded step needs it. Without,
    S follows the longest row in steps of SLOTS, so that the products of attention read one block of memory without
    gaps: on a CPU they take a quarter (bf16) to half (fp32) of the time.
    """

    def __init__(self, config, rows: int, device, dtype, slots: int = 0):
        shape = (rows, config.num_key_value_heads, slots, config.head_dim)
        self.k = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.v = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.rows = rows
        self.fixed = slots > 0
        self.window = slots  # length of the longest row, known without asking the device; of a fixed cache its slots

    @property
    def slots(self) -> int:
        return self.k[0].shape[2]

    def reserve(self, T: int, rows: int = 0):
        """Fit the slots to T more tokens of the longest row, and hold at least `rows` rows.

        Slots alone shrink only by more than SLOTS, so that they do not swing. Rows no longer in use are not taken
        along, and only what is new is zeroed.
        """
        slots, rows = -(-(self.window + T) // SLOTS) * SLOTS, max(rows, self.rows)
        held, _, now, _ = self.k[0].shape
        if self.fixed or now - SLOTS <= slots <= now and rows <= held:
            return
        for tensors in (self.k, self.v):
            for i, old in enumerate(tensors):
                tensors[i] = old.new_empty(rows, old.shape[1], slots, old.shape[3])
                tensors[i][:held, :, : self.window] = old[:rows, :, : self.window]
                tensors[i][:, :, self.window:] = 0  # what is masked must still be a number
                tensors[i][held:] = 0

    def positions(self, T: int):
        """Of T more tokens, (B, T)."""
        return self.lengths[: self.rows, None] + torch.arange(T, device=self.lengths.device)

    def mask(self, T: int = 1):
        """0 where the next token may look and -inf elsewhere, (B, 1, 1, S); None for an empty cache, where tokens see each other."""
        if not self.window:
            return None
        assert T == 1, "several tokens at once only into an empty cache"
        hidden = torch.arange(self.slots, device=self.lengths.device) > self.lengths[: self.rows, None, None, None]
        return torch.zeros(hidden.shape, device=hidden.device, dtype=self.k[0].dtype).masked_fill_(hidden, float("-inf"))

    def append(self, layer: int, k, v):
        """Write T tokens of each row, k and v (B, K, T, E). -> the keys and values to look at, (B, K, S, E)"""
        keys, values = self.k[layer][: self.rows], self.v[layer][: self.rows]
        if not self.window:
            keys[:, :, : k.shape[2]], values[:, :, : k.shape[2]] = k, v
            return k, v
        rows = torch.arange(self.rows, device=k.device)
        keys[rows, :, self.lengths[: self.rows]], values[rows, :, self.lengths[: self.rows]] = k[:, :, 0], v[:, :, 0]
        return keys, values

    def advance(self):
        """Count one more token in each row."""
        self.lengths[: self.rows] += 1
        if not self.fixed:
            self.window += 1

    def resize(self, rows: int):
        """Only the first `rows` rows count from now on.

        A few idle ones after them, which begin again, go along, so that there are few different shapes: a CPU
        compiles its bf16 products for each, and a GPU records each.
        """
        if self.fixed:
            self.rows = min(max(ROWS, 2 ** (rows - 1).bit_length()), len(self.lengths))
        else:
            self.window = int(self.lengths[:rows].max()) if rows else 0
            self.rows = min(-(-rows // ROWS) * ROWS, len(self.lengths))
        self.lengths[rows:] = 0

    def copy_rows(self, source: "KVCache", rows, to, last: int):
        """Rows `rows` of `source` (may be this cache) are written over rows `to`, of which `last` is the last.

        rows and to: indices on the device. Call `resize` afterwards.
        """
        width = source.window
        self.reserve(max(width - self.window, 0), last + 1)
        for mine, theirs in ((self.k, source.k), (self.v, source.v)):
            for cached, new in zip(mine, theirs):
                cached[to, :, :width] = new[rows, :, :width]
        self.lengths[to] = source.lengths[rows]


# ---- logits -> log-probs -> token ------------------------------------------------------------------------------------

def scaled_log_probs(logits, temperature: float):
    """log softmax(logits / temperature) in fp32. logits (..., V) -> (..., V). The one function that sampler and trainer share."""
    logits = logits.float()
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


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


def first_beyond(cumulative, target):
    """The first place whose cumulative mass exceeds the target (B,): (B,)."""
    # never past the last place that has any mass, however the sums were rounded
    target = torch.minimum(target, cumulative[:, -1] * (1 - 1e-6))
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]


def draw(log_probs, u):
    """One id per row, (B,), by inverting the distribution function: the first id whose cumulative mass exceeds u (B,).

    u is from 0 to 1. Of a large vocabulary first a block is found, then an id in it.
    """
    V = log_probs.shape[-1]
    blocks = log_probs.exp() if V <= LARGE else block_masses(log_probs)
    cumulative = blocks.cumsum(-1)
    target = u * cumulative[:, -1] * (1 - 1e-6)
    found = first_beyond(cumulative, target)
    if V <= LARGE:
        return found
    before = F.pad(cumulative, (1, 0)).gather(-1, found[:, None])  # the mass of the blocks before it
    ids = found[:, None] * BLOCK + torch.arange(BLOCK, device=found.device)  # (B, BLOCK)
    masses = log_probs.gather(-1, ids.clamp(max=V - 1)).exp().masked_fill(ids >= V, 0)
    return ids[:, 0] + first_beyond(masses.cumsum(-1), target - before[:, 0])


@few_kernels
def block_masses(log_probs):
    """log_probs (B, V) -> the mass of each BLOCK ids, (B, V / BLOCK, rounded up)."""
    masses = F.pad(log_probs.exp(), (0, -log_probs.shape[-1] % BLOCK))
    return masses.view(len(masses), -1, BLOCK).sum(-1)


def uniform(seed: int, prompt: int, samples: int, tokens: int):
    """Random numbers for the samples of the prompt of this number, (samples, tokens).

    Each token has its own, so that neither its place in the batch nor its neighbours change the text.
    """
    own = random.Random(f"{seed} {prompt}").getrandbits(63)
    return torch.rand(samples, tokens, generator=torch.Generator().manual_seed(own))


def next_token(logits, temperature, top_k, top_p, u):
    """ids (B,) and their log-probs (B,). Temperature 0 is greedy: all mass on one token, log-prob 0."""
    if temperature == 0:
        ids = logits.argmax(-1)
        return ids, torch.zeros(ids.shape, device=ids.device)
    log_probs = keep_top(scaled_log_probs(logits, temperature), top_k, top_p)
    ids = draw(log_probs, u)
    return ids, log_probs.gather(-1, ids[:, None])[:, 0]


# ---- rows that are written side by side ------------------------------------------------------------------------------

def prefill(model, prompts: list[list[int]], vocab_size: int | None = None):
    """Read the prompts: the cache of their tokens and the logits that follow each, (P, V)."""
    device, lengths = model.lm_head.weight.device, [len(prompt) for prompt in prompts]
    width = max(lengths)
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts], device=device)  # (P, T)
    cache = KVCache(model.config, len(prompts), device, low_dtype(model.lm_head.weight))
    cache.reserve(width)
    hidden = model.hidden(ids, cache=cache)  # (P, T, D); padding is on the right, and nobody looks to the right
    cache.lengths[:], cache.window = torch.tensor(lengths, device=device), width
    last = hidden[torch.arange(len(prompts), device=device), cache.lengths - 1]
    return cache, next_logits(model.lm_head.weight[:vocab_size], last)


class Batch:
    """Rows that are written side by side. `admit` reads prompts, `step` writes a token in each row, `retire` lets rows go.

    All that a step reads and writes lies in the same memory from beginning to end, so that it can be recorded.
    """

    def __init__(self, model, capacity: int, longest: int, sampling: Sampling):
        """longest: tokens of the longest prompt."""
        device = model.lm_head.weight.device
        self.model, self.sampling, self.device = model, sampling, device
        self.check = CHECK.get(device.type, 1)
        self.active = []  # active[b]: the Sample that row b writes
        # a row that has ended goes on until the next look, and what it adds is cut off
        N = sampling.max_new_tokens + self.check
        slots = longest + N if device.type in FIXED else 0
        self.cache = KVCache(model.config, capacity, device, low_dtype(model.lm_head.weight), slots)
        self.fused, self.replay = fuse(model, sampling.vocab_size), Replay(device)
        self.written = torch.zeros(capacity, N, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(capacity, N, device=device)
        self.noise = torch.zeros(capacity, N, device=device)
        self.counts = torch.zeros(capacity, dtype=torch.long, device=device)  # tokens written
        self.last = torch.zeros(capacity, dtype=torch.long, device=device)  # the token to feed next
        self.ended = torch.zeros(capacity, dtype=torch.bool, device=device)
        self.is_stop = torch.zeros(model.lm_head.weight.shape[0], dtype=torch.bool, device=device)
        self.is_stop[[id for id in sampling.stop_ids if id < len(self.is_stop)]] = True

    def admit(self, numbers: list[int], prompts: list[list[int]], samples: list[list[Sample]]):
        """Read prompts and draw the first token of each of their samples. numbers: of the prompts, for their random numbers."""
        M, first = len(samples[0]), len(self.active)
        read, logits = prefill(self.model, prompts, self.sampling.vocab_size)
        new = slice(first, first + len(prompts) * M)
        to = torch.arange(new.start, new.stop, device=self.device)
        self.cache.copy_rows(read, (to - first) // M, to, new.stop - 1)
        del read  # its memory is free while the rows are decoded
        self.active += [sample for row in samples for sample in row]
        self.cache.resize(len(self.active))
        if self.sampling.temperature:
            N = self.sampling.max_new_tokens
            noise = torch.cat([uniform(self.sampling.seed, number, M, N) for number in numbers])
            self.noise[new, :N] = noise.to(self.device)
        self.counts[new], self.ended[new] = 0, False
        self.take(new, logits.repeat_interleave(M, 0))

    def step(self):
        """One more token for each row."""
        self.cache.reserve(1)
        rows = self.cache.rows if self.cache.fixed else len(self.active)
        self.replay(rows, lambda: self.take(slice(0, rows), decode(self.fused, self.last[:rows], self.cache)))

    def take(self, rows: slice, logits):
        """Draw the next token of these rows and note it. logits (rows, V)."""
        s, every, counts = self.sampling, torch.arange(rows.start, rows.stop, device=self.device), self.counts[rows]
        ids, found = next_token(logits, s.temperature, s.top_k, s.top_p, self.noise[every, counts])
        self.written[every, counts], self.logprobs[every, counts] = ids, found
        self.counts[rows] += 1
        self.ended[rows] |= self.is_stop[ids] | (self.counts[rows] >= s.max_new_tokens)
        self.last[rows] = ids

    def retire(self) -> int:
        """Fill in the samples of the rows that have ended and give their places to others. -> how many ended"""
        done = self.ended[: len(self.active)].nonzero()[:, 0].tolist()
        if done:
            self.fill_in(done)
            keep = len(self.active) - len(done)
            holes = [row for row in done if row < keep]
            self.move(sorted(set(range(keep, len(self.active))) - set(done)), holes)
            del self.active[keep:]
        if done or self.cache.fixed:
            self.cache.resize(len(self.active))
            self.counts[len(self.active):] = 0  # idle rows write over the same few places
        return len(done)

    def fill_in(self, done: list[int]):
        rows = torch.tensor(done, device=self.device)
        N, stop_ids = self.sampling.max_new_tokens, self.sampling.stop_ids
        for row, ids, found in zip(done, self.written[rows].tolist(), self.logprobs[rows].tolist()):
            length = next((t for t, id in enumerate(ids[:N], 1) if id in stop_ids), N)
            sample = self.active[row]
            sample.ids, sample.logprobs, sample.finished = ids[:length], found[:length], ids[length - 1] in stop_ids

    def move(self, rows: list[int], to: list[int]):
        """The rows `rows` take the places `to`."""
        if not rows:
            return
        source, target = torch.tensor([rows, to]).to(self.device)
        self.cache.copy_rows(self.cache, source, target, max(to))
        for state in (self.written, self.logprobs, self.noise, self.counts, self.ended, self.last):
            state[target] = state[source]
        for row, place in zip(rows, to):
            self.active[place] = self.active[row]


# ---- many texts ------------------------------------------------------------------------------------------------------

def generate(model, prompts: list[list[int]], samples_per_prompt: int, max_new_tokens: int, stop_ids, vocab_size: int,
             temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, batch_size: int = 512,
             progress: str = "") -> list[list[Sample]]:
    """Samples for each prompt, in the prompts' order: [prompt][sample].

    The same arguments and number of threads give the same text. Under autocast, cache and layers are in its
    precision; logits and log-probs never are.

    batch_size: rows decoded together, by all workers. progress: the label of a tqdm bar, none if empty.
    InputError: a prompt is empty, or does not fit into the context together with `max_new_tokens`.
    """
    context = model.config.max_position_embeddings
    for i, prompt in enumerate(prompts):
        if not prompt or len(prompt) + max_new_tokens > context:
            raise InputError(f"prompt {i + 1} of {len(prompts)} has {len(prompt)} tokens; with --max-new-tokens {max_new_tokens} "
                             f"it does not fit into the model's context of {context}")
    samples = [[Sample() for _ in range(samples_per_prompt)] for _ in prompts]
    if not prompts:
        return samples
    sampling = Sampling(max_new_tokens, frozenset(stop_ids), vocab_size, temperature, top_k, top_p, seed)
    # Long prompts first, neighbours of like length: little padding, and the largest memory use comes at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    count = min(workers(model), len(prompts))
    kind = model.lm_head.weight.device.type
    mixed, precision = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)  # a thread begins without
    stopped = threading.Event()  # one worker fails, or Ctrl-C: the others end, too
    with tqdm(total=len(prompts) * samples_per_prompt, desc=progress, disable=not progress, leave=False) as bar:
        def work(share):
            try:
                with torch.inference_mode(), torch.autocast(kind, precision, enabled=mixed):
                    write(model, prompts, samples, share, sampling, -(-batch_size // count), bar, stopped)
            except BaseException:
                stopped.set()
                raise
        try:
            in_parallel(work, [order[i::count] for i in range(count)], count)
        except BaseException:
            stopped.set()
            raise
    return samples


def write(model, prompts, samples, waiting: list[int], sampling: Sampling, batch_size: int, bar, stopped):
    """Write the samples of the prompts `waiting`, in this order, unless `stopped`."""
    M = len(samples[0])
    capacity = min(max(batch_size // M, 1), len(waiting)) * M
    batch = Batch(model, capacity, max(len(prompts[i]) for i in waiting), sampling)
    while (batch.active or waiting) and not stopped.is_set():
        free = (capacity - len(batch.active)) // M
        if waiting and free and (not batch.active or free * M >= capacity // 4):
            group, waiting = waiting[:free], waiting[free:]
            some = max(1, READ // len(prompts[group[0]]))  # the first is the longest
            for part in (group[i:i + some] for i in range(0, len(group), some)):
                batch.admit(part, [prompts[i] for i in part], [samples[i] for i in part])
        else:
            for _ in range(batch.check):
                batch.step()
        bar.update(batch.retire())
