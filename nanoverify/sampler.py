"""Sampling with a key/value cache. Token ids in, token ids out: no text, no rewards.

A step is a pipeline of small functions: logits -> log-probabilities -> token. Rows are independent
and move freely. Each prompt is read once and copied to its samples. When a row ends, the last row
takes its place, and waiting prompts fill the free rows. So the batch stays full, and nothing is
computed for finished text. On a CPU each worker (`support/cpu.py`) has a batch of its own.

Letters as in model.py.
"""
import random
import threading
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from nanoverify.support.cpu import in_parallel, workers
from nanoverify.support.decoding import Replay, decode, fuse, next_logits
from nanoverify.support.files import InputError
from nanoverify.support.kernels import few_kernels, low_dtype
from nanoverify.support.progress import bar

# Tuned for a kind of device: they change speed and memory, not the text, apart from rounding.
SLOTS = 32  # a cache grows and shrinks by this many tokens
ROWS = 32  # rows are decoded in multiples of this
CHECK = {"cpu": 1, "cuda": 16}  # steps between two looks at which rows have ended; the host waits
READ = 2 ** 14  # tokens of prompts that are read at once, padding included
BLOCK, LARGE = 512, 8192  # a vocabulary of more than LARGE ids is searched in blocks
FIXED = {"cuda"}  # devices on which a cache has all of its slots from the beginning


@dataclass
class Sample:
    """One response."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of each id, as it was drawn
    finished: bool = False  # True: its last id is a stop id; False: the token limit cut it


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn, and when they end."""
    max_new_tokens: int
    temperature: float = 1.0  # 0: always the likeliest token
    samples: int = 1  # texts for each prompt
    seed: int = 0
    batch_size: int = 512  # rows decoded together, by all workers
    top_k: int = 0  # only the k likeliest tokens; 0: all
    top_p: float = 1.0  # only the likeliest tokens that together have this mass
    stop_ids: frozenset[int] = frozenset()  # a text ends with the first of them
    vocab_size: int | None = None  # ids that exist; others are padding of the weights. None: all

    def with_tokenizer(self, tokenizer) -> "Sampling":
        """The same, with the stop ids and the vocabulary of this tokenizer."""
        return replace(self, stop_ids=tokenizer.stop_ids, vocab_size=tokenizer.vocab_size)


# ---- the cache ---------------------------------------------------------------------------------

class KVCache:
    """Keys and values of `rows` rows; row b holds lengths[b] tokens in S slots. Written in place.

    Where `slots` is given, all slots exist from the beginning and the memory never moves: a
    recorded step needs that. Otherwise S follows the longest row in steps of SLOTS, so that
    attention reads one block of memory without gaps.
    """

    def __init__(self, config, rows: int, device, dtype, slots: int = 0):
        shape = (rows, config.num_key_value_heads, slots, config.head_dim)

        def empty():
            return [torch.zeros(shape, device=device, dtype=dtype)
                    for _ in range(config.num_hidden_layers)]
        self.k, self.v = empty(), empty()
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.rows = rows
        self.fixed = slots > 0
        # the longest row's length, known without asking the device; of a fixed cache its slots
        self.window = slots

    @property
    def slots(self) -> int:
        return self.k[0].shape[2]

    def reserve(self, T: int, rows: int = 0):
        """Fit the slots to T more tokens of the longest row, and hold at least `rows` rows.

        Slots shrink only by more than SLOTS, so that their number does not swing. Rows no longer
        in use are not copied, and only what is new is zeroed.
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
        """Added to scores: 0 where the next token may look, else -inf. (B, 1, 1, S).

        None for an empty cache, in which the new tokens see each other.
        """
        if not self.window:
            return None
        assert T == 1, "several tokens at once only into an empty cache"
        lengths, device = self.lengths[: self.rows, None, None, None], self.lengths.device
        hidden = torch.arange(self.slots, device=device) > lengths
        zeros = torch.zeros(hidden.shape, device=device, dtype=self.k[0].dtype)
        return zeros.masked_fill_(hidden, float("-inf"))

    def append(self, layer: int, k, v):
        """Write T tokens of each row, k and v (B, K, T, E).

        -> the keys and values to look at, (B, K, S, E)
        """
        keys, values = self.k[layer][: self.rows], self.v[layer][: self.rows]
        if not self.window:
            T = k.shape[2]
            keys[:, :, :T], values[:, :, :T] = k, v
            return k, v
        rows, lengths = torch.arange(self.rows, device=k.device), self.lengths[: self.rows]
        keys[rows, :, lengths], values[rows, :, lengths] = k[:, :, 0], v[:, :, 0]
        return keys, values

    def advance(self):
        """Count one more token in each row."""
        self.lengths[: self.rows] += 1
        if not self.fixed:
            self.window += 1

    def resize(self, rows: int):
        """Only the first `rows` rows count from now on.

        A few idle rows after them are computed as well, so that there are few different shapes. A
        CPU compiles its bf16 products for each shape, and a GPU records each.
        """
        if self.fixed:
            self.rows = min(max(ROWS, 2 ** (rows - 1).bit_length()), len(self.lengths))
        else:
            self.window = int(self.lengths[:rows].max()) if rows else 0
            self.rows = min(-(-rows // ROWS) * ROWS, len(self.lengths))
        self.lengths[rows:] = 0

    def copy_rows(self, source: "KVCache", rows, to, last: int):
        """Copy rows `rows` of `source`, which may be this cache, over rows `to` of this one.

        rows and to are indices on the device; `last` is the largest of `to`. Call `resize` after.
        """
        width = source.window
        self.reserve(max(width - self.window, 0), last + 1)
        for mine, theirs in ((self.k, source.k), (self.v, source.v)):
            for cached, new in zip(mine, theirs):
                cached[to, :, :width] = new[rows, :, :width]
        self.lengths[to] = source.lengths[rows]


# ---- logits -> log-probs -> token --------------------------------------------------------------

def scaled_log_probs(logits, temperature: float):
    """log softmax(logits / temperature) in fp32, (..., V) -> (..., V).

    Sampler and trainer share this function.
    """
    logits = logits.float()
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


def keep_top(log_probs, top_k: int, top_p: float):
    """Keep the k likeliest tokens (0: all), then the smallest set of at least `top_p` mass.

    (B, V) -> (B, V), normalised again.
    """
    if top_k:
        smallest = log_probs.topk(min(top_k, log_probs.shape[-1])).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < smallest, float("-inf")).log_softmax(-1)
    if top_p < 1:
        ordered, order = log_probs.sort(-1, descending=True)
        probs = ordered.exp()
        # the tokens before this one have enough mass already; the first one always stays
        beyond = probs.cumsum(-1) - probs >= top_p
        ordered = ordered.masked_fill(beyond, float("-inf"))
        log_probs = ordered.gather(-1, order.argsort(-1)).log_softmax(-1)
    return log_probs


def first_beyond(cumulative, target):
    """The first place whose cumulative mass exceeds the target (B,): (B,)."""
    # never past the last place that has any mass, however the sums were rounded
    target = torch.minimum(target, cumulative[:, -1] * (1 - 1e-6))
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]


def draw(log_probs, u):
    """One id per row, (B,): the first one whose cumulative mass exceeds u (B,), 0 <= u < 1.

    This inverts the distribution function. In a large vocabulary a block is found first, and then
    an id in it.
    """
    V = log_probs.shape[-1]
    blocks = log_probs.exp() if V <= LARGE else block_masses(log_probs)
    cumulative = blocks.cumsum(-1)
    target = u * cumulative[:, -1] * (1 - 1e-6)
    block = first_beyond(cumulative, target)
    if V <= LARGE:
        return block  # blocks of one id
    mass_before = F.pad(cumulative, (1, 0)).gather(-1, block[:, None])
    ids = block[:, None] * BLOCK + torch.arange(BLOCK, device=block.device)  # (B, BLOCK)
    masses = log_probs.gather(-1, ids.clamp(max=V - 1)).exp().masked_fill(ids >= V, 0)
    return ids[:, 0] + first_beyond(masses.cumsum(-1), target - mass_before[:, 0])


@few_kernels
def block_masses(log_probs):
    """log_probs (B, V) -> the mass of each BLOCK ids, (B, V / BLOCK, rounded up)."""
    masses = F.pad(log_probs.exp(), (0, -log_probs.shape[-1] % BLOCK))
    return masses.view(len(masses), -1, BLOCK).sum(-1)


def uniform(seed: int, prompt: int, samples: int, tokens: int):
    """Random numbers for the samples of prompt number `prompt`, (samples, tokens).

    Each token has its own. So neither its place in the batch nor its neighbours change the text.
    """
    own = random.Random(f"{seed} {prompt}").getrandbits(63)
    return torch.rand(samples, tokens, generator=torch.Generator().manual_seed(own))


def next_token(logits, temperature, top_k, top_p, u):
    """ids (B,) and their log-probs (B,).

    Temperature 0 is greedy: all mass is on one token, whose log-prob is 0.
    """
    if temperature == 0:
        ids = logits.argmax(-1)
        return ids, torch.zeros(ids.shape, device=ids.device)
    log_probs = keep_top(scaled_log_probs(logits, temperature), top_k, top_p)
    ids = draw(log_probs, u)
    return ids, log_probs.gather(-1, ids[:, None])[:, 0]


# ---- rows that are written side by side --------------------------------------------------------

def prefill(model, prompts: list[list[int]], vocab_size: int | None = None):
    """Read the prompts: the cache of their tokens and the logits that follow each, (P, V)."""
    device, lengths = model.lm_head.weight.device, [len(prompt) for prompt in prompts]
    width = max(lengths)
    padded = [prompt + [0] * (width - len(prompt)) for prompt in prompts]
    ids = torch.tensor(padded, device=device)  # (P, T)
    cache = KVCache(model.config, len(prompts), device, low_dtype(model.lm_head.weight))
    cache.reserve(width)
    # padding is on the right, where no token looks
    hidden = model.hidden(ids, cache=cache)  # (P, T, D)
    cache.lengths[:], cache.window = torch.tensor(lengths, device=device), width
    last = hidden[torch.arange(len(prompts), device=device), cache.lengths - 1]
    return cache, next_logits(model.lm_head.weight[:vocab_size], last)


class Batch:
    """Rows that are written side by side.

    `admit` reads prompts, `step` writes a token in each row, `retire` lets finished rows go. What
    a step reads and writes stays in the same memory all the time, so that a GPU can record it.
    """

    def __init__(self, model, capacity: int, longest: int, sampling: Sampling):
        """longest: tokens of the longest prompt."""
        device = model.lm_head.weight.device
        self.model, self.sampling, self.device = model, sampling, device
        self.check = CHECK.get(device.type, 1)
        self.active = []  # active[b]: the Sample that row b writes
        # a row that has ended is written on until the next look; what it adds is cut off
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
        ids = model.lm_head.weight.shape[0]
        self.is_stop = torch.zeros(ids, dtype=torch.bool, device=device)
        self.is_stop[[id for id in sampling.stop_ids if id < ids]] = True

    def admit(self, numbers, prompts: list[list[int]], samples: list[list[Sample]]):
        """Read prompts and draw the first token of each of their samples.

        numbers: of the prompts; their random numbers depend on them.
        """
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

        def work():
            self.take(slice(0, rows), decode(self.fused, self.last[:rows], self.cache))
        self.replay(rows, work)

    def take(self, rows: slice, logits):
        """Draw the next token of these rows and note it. logits (rows, V)."""
        s, counts = self.sampling, self.counts[rows]
        every = torch.arange(rows.start, rows.stop, device=self.device)
        noise = self.noise[every, counts]
        ids, logprobs = next_token(logits, s.temperature, s.top_k, s.top_p, noise)
        self.written[every, counts], self.logprobs[every, counts] = ids, logprobs
        self.counts[rows] += 1
        self.ended[rows] |= self.is_stop[ids] | (self.counts[rows] >= s.max_new_tokens)
        self.last[rows] = ids

    def retire(self) -> int:
        """Fill in the samples of the rows that have ended, and give their places to others.

        -> how many ended
        """
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
        written, logprobs = self.written[rows].tolist(), self.logprobs[rows].tolist()
        for row, ids, its_logprobs in zip(done, written, logprobs):
            length = next((t for t, id in enumerate(ids[:N], 1) if id in stop_ids), N)
            sample = self.active[row]
            sample.ids, sample.logprobs = ids[:length], its_logprobs[:length]
            sample.finished = ids[length - 1] in stop_ids

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


# ---- many texts --------------------------------------------------------------------------------

def generate(model, prompts: list[list[int]], sampling: Sampling,
             progress: str = "") -> list[list[Sample]]:
    """Samples for each prompt, in the prompts' order: [prompt][sample].

    The same arguments and number of threads give the same text. Under autocast, cache and layers
    are in its precision; logits and log-probs never are. progress: label of a bar ("": none).
    InputError: a prompt is empty, or does not fit into the context with `max_new_tokens`.
    """
    check_lengths(prompts, sampling.max_new_tokens, model.config.max_position_embeddings)
    samples = [[Sample() for _ in range(sampling.samples)] for _ in prompts]
    if not prompts:
        return samples
    # Long prompts first, neighbours of like length: this leaves little padding, and the largest
    # use of memory comes at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    count = min(workers(model), len(prompts))
    size = -(-sampling.batch_size // count)
    kind = model.lm_head.weight.device.type
    mixed, precision = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    stopped = threading.Event()  # one worker fails, or Ctrl-C: the others end, too
    total = len(prompts) * sampling.samples
    with bar(total=total, desc=progress, disable=not progress, leave=False) as shown:
        def work(numbers):
            tasks = [(i, prompts[i], samples[i]) for i in numbers]
            try:
                # a thread does not inherit these two modes
                with torch.inference_mode(), torch.autocast(kind, precision, enabled=mixed):
                    write(model, tasks, sampling, size, shown, stopped)
            except BaseException:
                stopped.set()
                raise
        try:
            in_parallel(work, [order[i::count] for i in range(count)], count)
        except BaseException:
            stopped.set()
            raise
    return samples


def check_lengths(prompts: list[list[int]], max_new_tokens: int, context: int):
    """InputError: a prompt is empty or too long."""
    for i, prompt in enumerate(prompts, 1):
        if not prompt or len(prompt) + max_new_tokens > context:
            raise InputError(f"prompt {i} of {len(prompts)} has {len(prompt)} tokens; with "
                             f"--max-new-tokens {max_new_tokens} it does not fit into the model's "
                             f"context of {context}")


def write(model, waiting: list[tuple], sampling: Sampling, batch_size: int, shown, stopped):
    """Write the samples of these prompts in this order, until `stopped` is set.

    waiting: (number, prompt, its samples to fill in)
    """
    M = sampling.samples
    capacity = min(max(batch_size // M, 1), len(waiting)) * M
    longest = max(len(prompt) for _, prompt, _ in waiting)
    batch = Batch(model, capacity, longest, sampling)
    while (batch.active or waiting) and not stopped.is_set():
        free = (capacity - len(batch.active)) // M
        if waiting and free and (not batch.active or free * M >= capacity // 4):
            group, waiting = waiting[:free], waiting[free:]
            at_once = max(1, READ // len(group[0][1]))  # the first prompt is the longest
            for start in range(0, len(group), at_once):
                numbers, prompts, samples = zip(*group[start: start + at_once])
                batch.admit(numbers, prompts, samples)
        else:
            for _ in range(batch.check):
                batch.step()
        shown.update(batch.retire())
