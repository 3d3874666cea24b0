"""Sampling with a key/value cache. Token ids in, token ids out: no text, no rewards.

A step is a pipeline of small functions: logits -> log-probabilities -> token. Rows are independent and move freely:
each prompt is read once and copied to its samples; a row that ends leaves, the last row takes its place, and
waiting prompts fill the free rows. So the batch stays full and nothing is computed for finished text.
On a CPU each worker (`parallel.py`) has a batch of its own, with its share of the prompts.
"""
import random
import threading
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from tqdm import tqdm

from nanoverify.files import InputError
from nanoverify.model import Config, angles, rotate
from nanoverify.parallel import in_parallel, workers


@dataclass
class Sample:
    """One response. ids end with the stop id if `finished`; otherwise the token limit cut it."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of each id, under the distribution it was drawn from
    finished: bool = False


SLOTS = 32  # a cache grows and shrinks by so many tokens
ROWS = 32  # rows are decoded in multiples of this


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
        """Write T tokens per row into an empty cache, k and v (B, K, T, E); all slots, (B, K, S, E). `decode` writes the tokens that follow."""
        assert self.window == 0, "several tokens at once only into an empty cache"
        for cached, new in ((self.k[layer], k), (self.v[layer], v)):
            cached[: self.rows, :, : new.shape[2]] = new
        return self.k[layer][: self.rows], self.v[layer][: self.rows]

    def advance(self, tokens=1):
        """Count what was appended: one number for all rows, or (B,) into an empty cache."""
        self.lengths[: self.rows] += tokens
        self.window = self.window + tokens if isinstance(tokens, int) else int(tokens.max())

    def resize(self, rows: int):
        """Only the first `rows` rows count from now on. A few idle ones behind them, which begin anew, go along, so that there are few
        different shapes: on a CPU the bf16 products are compiled for each; sampling 512 rows of the default takes 0.86 of the time."""
        self.window = int(self.lengths[:rows].max()) if rows else 0
        self.rows = min(-(-rows // ROWS) * ROWS, len(self.lengths))
        self.lengths[rows:] = 0

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


def draw(log_probs, u):
    """One id per row, (B,), by inverting the distribution function: the first id whose cumulative mass exceeds u (B,), from 0 to 1."""
    cumulative = log_probs.exp().cumsum(-1)
    # just below the total, so that rounding never leads behind the last id that has any mass
    return torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:] * (1 - 1e-6), right=True)[:, 0]


def uniform(seed: int, prompt: int, samples: int, tokens: int):
    """Random numbers for the samples of the prompt of this number, (samples, tokens). Each token has its own, so that neither its place in the batch nor its
    neighbours change the text."""
    return torch.rand(samples, tokens, generator=torch.Generator().manual_seed(random.Random(f"{seed} {prompt}").getrandbits(63)))


def next_token(logits, vocab_size, temperature, top_k, top_p, u):
    """ids (B,) and their log-probs (B,). Temperature 0 is greedy: all mass on one token, log-prob 0."""
    if temperature == 0:
        ids = scaled_log_probs(logits, vocab_size, 1.0).argmax(-1)
        return ids, torch.zeros(ids.shape, device=ids.device)
    log_probs = keep_top(scaled_log_probs(logits, vocab_size, temperature), top_k, top_p)
    ids = draw(log_probs, u)
    return ids, log_probs.gather(-1, ids[:, None])[:, 0]


# ---- one step ----------------------------------------------------------------------------------------------------------

def mixed_dtype(model):
    """What layers and cache compute in: the precision of autocast where it is on, else that of the weights."""
    weight = model.lm_head.weight
    return torch.get_autocast_dtype(weight.device.type) if torch.is_autocast_enabled(weight.device.type) else weight.dtype


def next_logits(head, hidden):
    """Logits behind final states (B, D), (B, V), in the precision of the weights even under autocast. head (V, D)."""
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.to(head.dtype), head)


def prefill(model, prompts: list[list[int]]):
    """Read the prompts: the cache of their tokens and the logits that follow each, (P, V)."""
    device = model.lm_head.weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts], device=device)  # (P, T)
    cache = KVCache(model.config, len(prompts), device, mixed_dtype(model))
    cache.reserve(width)
    hidden = model.hidden(ids, cache=cache)  # (P, T, D)
    cache.advance(lengths)
    return cache, next_logits(model.lm_head.weight, hidden[torch.arange(len(prompts), device=device), lengths - 1])


@dataclass
class Fused:
    """A model's weights as one step of decoding wants them. Products that read the same input are one matrix, and the gains of
    the norms before them are multiplied in: half as many operations."""
    config: Config
    frequencies: torch.Tensor  # (E/2,)
    embedding: torch.Tensor  # (V, D)
    head: torch.Tensor  # (V, D)
    gain: torch.Tensor  # of the last norm, (D,)
    small: torch.Tensor  # sqrt(D * eps)
    layers: list[dict]


def fuse(model) -> Fused:
    dtype, layers, H, K = mixed_dtype(model), [], model.config.num_attention_heads, model.config.num_key_value_heads
    for layer in model.model["layers"]:
        attention, mlp = layer.self_attn, layer.mlp
        gains = [norm.weight * model.config.hidden_size ** 0.5 for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        qkv, gate_up = (attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)
        layers.append({
            "qkv": (torch.cat([part.weight for part in qkv]) * gains[0]).to(dtype),  # ((H + 2K) * E, D)
            "bias": torch.cat([part.bias for part in qkv]).to(dtype) if model.config.qkv_bias else None,
            "o": attention.o_proj.weight.to(dtype),
            "norms": torch.cat([attention.q_norm.weight.expand(H, -1), attention.k_norm.weight.expand(K, -1)]) if model.config.qk_norm else None,  # (H + K, E)
            "gate_up": (torch.cat([part.weight for part in gate_up]) * gains[1]).to(dtype),
            "down": mlp.down_proj.weight.to(dtype)})
    return Fused(model.config, model.frequencies, model.model["embed_tokens"].weight, model.lm_head.weight, model.model["norm"].weight,
                 torch.tensor((model.config.hidden_size * model.config.rms_norm_eps) ** 0.5, device=model.lm_head.weight.device), layers)


def decode(fused: Fused, ids, cache: KVCache):
    """Read one more token of every row, ids (B,): the logits that follow, (B, V). `Transformer.hidden` for a single token, in as few
    operations as will do: for small models and small batches it is their number that costs."""
    with torch.autocast(ids.device.type, enabled=False):  # the precisions are chosen here
        cache.reserve(1)
        count, ids = len(ids), F.pad(ids, (0, cache.rows - len(ids)))  # idle rows go along
        c, B, dtype = fused.config, len(ids), cache.k[0].dtype
        H, K, E, D = c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.hidden_size
        S, lengths = cache.k[0].shape[2], cache.lengths[:B]
        slots = (torch.arange(B * K, device=ids.device).view(B, K) * S + lengths[:, None]).flatten()  # where the new token goes, (B * K,)
        cos, sin = angles(lengths, fused.frequencies.to(ids.device))  # (B, 1, E)
        mask = cache.mask(1).expand(B, K, 1, S).reshape(B * K, 1, S)
        x = fused.embedding[ids]  # (B, D)

        def norm(x):  # times sqrt(D), which is in the weights, the RMSNorm without its gain
            return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), fused.small)

        for i, layer in enumerate(fused.layers):
            qkv = F.linear(norm(x).to(dtype), layer["qkv"], layer["bias"]).view(B, H + 2 * K, E)
            qk = qkv[:, : H + K].to(x.dtype)
            if layer["norms"] is not None:
                qk = F.rms_norm(qk, (E,), None, c.rms_norm_eps) * layer["norms"]
            qk = rotate(qk, cos, sin).to(dtype)  # (B, H + K, E)
            k, v = cache.k[i][:B], cache.v[i][:B]  # (B, K, S, E)
            k.view(-1, E).index_copy_(0, slots, qk[:, H:].reshape(-1, E))
            v.view(-1, E).index_copy_(0, slots, qkv[:, H + K:].reshape(-1, E))
            # the G query heads of one key/value head read it together: nothing is copied
            q = qk[:, :H].reshape(B * K, H // K, E)
            scores = torch.baddbmm(mask, q, k.flatten(0, 1).transpose(1, 2), alpha=E ** -0.5)  # (B * K, G, S)
            y = torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(B, H * E)
            x = x + F.linear(y, layer["o"])
            gate, up = F.linear(norm(x).to(dtype), layer["gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        cache.advance()
        return next_logits(fused.head, F.rms_norm(x[:count], (D,), fused.gain, c.rms_norm_eps))


# ---- many texts ----------------------------------------------------------------------------------------------------------

def generate(model, prompts: list[list[int]], samples_per_prompt: int, max_new_tokens: int, stop_ids, vocab_size: int,
             temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, batch_size: int = 512,
             progress: str = "") -> list[list[Sample]]:
    """Samples for each prompt, in the prompts' order: [prompt][sample]. The same arguments and number of threads give the same text.
    Under autocast, cache and layers are in its precision; logits and log-probs never are.

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
                    fill(model, prompts, samples, share, max_new_tokens, stop_ids, vocab_size, temperature, top_k, top_p, seed, -(-batch_size // count), bar, stopped)
            except BaseException:
                stopped.set()
                raise
        try:
            in_parallel(work, [order[i::count] for i in range(count)], count)
        except BaseException:
            stopped.set()
            raise
    return samples


CHECK = {"cpu": 1, "cuda": 16}  # steps between two looks at which rows have ended: for each look the host waits for the device


def fill(model, prompts, samples, waiting: list[int], max_new_tokens: int, stop_ids, vocab_size: int, temperature: float, top_k: int, top_p: float, seed: int,
         batch_size: int, bar, stopped):
    """Write the samples of the prompts `waiting`, in this order, unless `stopped`."""
    device, M, N = model.lm_head.weight.device, len(samples[0]), max_new_tokens
    fused, check = fuse(model), CHECK.get(device.type, 1)
    capacity = min(max(batch_size // M, 1), len(waiting)) * M
    cache, active = None, []  # active[b]: the Sample that row b writes
    is_stop = torch.zeros(fused.head.shape[0], dtype=torch.bool, device=device)
    is_stop[[id for id in stop_ids if id < len(is_stop)]] = True
    # what a row has written; a row that has ended goes on until the next look, and what it adds is cut off
    written = torch.zeros(capacity, N + check, dtype=torch.long, device=device)
    logprobs = torch.zeros(capacity, N + check, device=device)
    noise = torch.zeros(capacity, N + check, device=device)
    counts = torch.zeros(capacity, dtype=torch.long, device=device)
    ended = torch.zeros(capacity, dtype=torch.bool, device=device)

    def take(rows: slice, logits):
        """Draw the next token of these rows and note it."""
        every = torch.arange(rows.start, rows.stop, device=device)
        ids, found = next_token(logits, vocab_size, temperature, top_k, top_p, noise[every, counts[rows]])
        written[every, counts[rows]], logprobs[every, counts[rows]] = ids, found
        counts[rows] += 1
        ended[rows] |= is_stop[ids] | (counts[rows] >= N)
        return ids

    last = torch.zeros(capacity, dtype=torch.long, device=device)  # the token to feed next
    while (active or waiting) and not stopped.is_set():
        free = (capacity - len(active)) // M
        if waiting and free and (not active or free * M >= capacity // 4):
            group, waiting = waiting[:free], waiting[free:]
            read, logits = prefill(model, [prompts[i] for i in group])
            cache = cache or KVCache(model.config, capacity, device, read.k[0].dtype)
            rows = slice(len(active), len(active) + len(group) * M)
            cache.copy_rows(read, [p for p in range(len(group)) for _ in range(M)], list(range(rows.start, rows.stop)))
            del read  # its memory is free while the rows are decoded
            active += [sample for i in group for sample in samples[i]]
            cache.resize(len(active))
            if temperature:
                noise[rows, :N] = torch.cat([uniform(seed, i, M, N) for i in group]).to(device)
            counts[rows], ended[rows] = 0, False
            last[rows] = take(rows, logits.repeat_interleave(M, 0))  # (new rows, V)
        else:
            rows = slice(0, len(active))
            for _ in range(check):
                last[rows] = take(rows, decode(fused, last[rows], cache))
        done = ended[: len(active)].nonzero()[:, 0].tolist()
        if done:
            for row, ids, found in zip(done, written[done].tolist(), logprobs[done].tolist()):
                length = next((t for t, id in enumerate(ids[:N], 1) if id in stop_ids), N)
                sample = active[row]
                sample.ids, sample.logprobs, sample.finished = ids[:length], found[:length], ids[length - 1] in stop_ids
            bar.update(len(done))
            keep = len(active) - len(done)
            holes = [row for row in done if row < keep]
            movers = sorted(set(range(keep, len(active))) - set(done))
            if holes:
                cache.copy_rows(cache, movers, holes)
                for state in (written, logprobs, noise, counts, ended, last):
                    state[holes] = state[movers]
                for hole, mover in zip(holes, movers):
                    active[hole] = active[mover]
            del active[keep:]
            cache.resize(keep)
