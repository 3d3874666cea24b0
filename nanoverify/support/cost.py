"""What will a stage cost? Memory is computed before anything is loaded; time is rehearsed.

Weights, gradients and both Adam moments are fp32 (the master copy), matrix products are bf16 under
autocast. Sampling and training never overlap, so the peak is what stays plus the larger of the two.
The figures are for PyTorch's attention kernel, as on CUDA. On a CPU, chunked_attention keeps about
H (T + 256) more bytes per token and layer, and each worker has a micro-batch of its own.

Letters as in model.py; I is the width of the MLP, L the number of layers.
"""
import time

import torch

from nanoverify.model import Config, Transformer
from nanoverify.sampler import READ, Batch, Sample, Sampling
from nanoverify.scoring import LOGITS, backward, token_log_probs
from nanoverify.support.cpu import in_parallel, workers
from nanoverify.support.kernels import autocast
from nanoverify.support.progress import waiting

MICRO_TOKENS = (16384, 8192, 4096)  # defaults on CUDA: the first that fits


def device_memory(device) -> int:
    """Bytes of a GPU, 0 where there is none."""
    return torch.cuda.get_device_properties(device).total_memory if torch.cuda.is_available() else 0


def activation_bytes(config: Config, tokens: int, recompute: bool) -> int:
    """What the backward pass keeps of `tokens` tokens (B x T), without the logits."""
    D, L = config.hidden_size, config.num_hidden_layers
    HE = config.num_attention_heads * config.head_dim
    KE = config.num_key_value_heads * config.head_dim
    # per token: residuals and norms in fp32, their bf16 copies for the products; q, k, v after the
    # rotation; the three of the MLP
    layer = 21 * D + 4 * HE + 4 * KE + 8 * config.intermediate_size
    return tokens * (4 * D * L + layer if recompute else layer * L)


@waiting("computing the memory")
def estimate(config: Config, batch_size: int, slots: int, micro_tokens: int = 0,
             recompute: bool = False, frozen: int = 0, kind: str = "cuda") -> dict[str, int]:
    """Bytes by purpose, and their `peak`.

    slots         tokens of the longest sequence that is sampled
    micro_tokens  0: sampling only
    frozen        other models of this size that stay in memory
    kind          of device
    """
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Transformer(config).parameters())
    V, D = config.vocab_size, config.hidden_size
    layers = parameters - V * D * (1 if config.tie_word_embeddings else 2)
    parts = {"weights": 4 * parameters}
    if micro_tokens:
        parts["Adam"] = 8 * parameters
    if frozen:
        parts["frozen"] = 4 * parameters * frozen
    stays = sum(parts.values())
    parts["training"] = 0
    if micro_tokens:
        # gradients, and that of lm_head twice more while it is summed up; bf16 copies of the
        # weights; what the backward pass needs; logits, log-probs and their gradient, of at most
        # LOGITS numbers at once
        parts["training"] = (4 * parameters + 2 * 4 * V * D + 2 * (layers + V * D)
                             + activation_bytes(config, micro_tokens, recompute)
                             + 3 * 4 * min(LOGITS[kind], micro_tokens * V))
    # keys and values of one token in bf16
    token = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    # logits, log-probs, probabilities and their sums
    step = 4 * 4 * batch_size * V
    # or prompts that are read: keys and values, residuals, the MLP
    read = min(READ, batch_size * slots) * (token + 12 * D + 6 * config.intermediate_size)
    # bf16 copies of the layers and of lm_head; keys and values of all rows
    parts["sampling"] = 2 * (layers + V * D) + batch_size * slots * token + max(step, read)
    return {**parts, "peak": stays + max(parts["training"], parts["sampling"])}


def memory_line(parts: dict[str, int]) -> str:
    """'memory, computed: 14.2 GB = weights 2.0 + Adam 4.0 + training 8.2 or sampling 1.1'"""
    gigabytes = {name: f"{name} {size / 1e9:.2f}"
                 for name, size in parts.items() if name != "peak" and size}
    in_turn = [gigabytes.pop(name) for name in ("training", "sampling") if name in gigabytes]
    terms = " + ".join([*gigabytes.values(), " or ".join(in_turn)])
    return f"memory, computed: {parts['peak'] / 1e9:.2f} GB = {terms}"


# ---- time --------------------------------------------------------------------------------------
# The largest step of each kind is taken twice, so that a lack of memory shows now, not in an hour.

def now(device) -> float:
    """Seconds, when all work given to the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(work, device) -> float:
    """Seconds of the second run: the first one also pays for what is set up once."""
    for _ in range(2):
        began = now(device)
        work()
    return now(device) - began


@waiting("rehearsing a step of sampling")
def decoding_step(model, rows: int, slots: int) -> float:
    """Seconds for one more token of each of `rows` rows of nearly `slots` tokens.

    The workers share the rows as in `sampler.generate`.
    """
    device, count = model.lm_head.weight.device, min(workers(model), rows)
    few = 8  # steps at most

    @torch.inference_mode()
    def prepare(rows):
        sampling = Sampling(few, vocab_size=model.config.vocab_size)
        with autocast(device):
            batch = Batch(model, rows, slots - few, sampling)
        batch.active = [Sample()] * rows
        batch.cache.resize(rows)
        batch.cache.reserve(slots)
        batch.cache.window = slots - few
        batch.cache.lengths[:rows] = slots - few
        for _ in range(2):  # on CUDA the first step is an ordinary one, the second is recorded
            batch.step()
        return batch

    @torch.inference_mode()
    def step(batch):
        batch.step()

    prepared = [prepare(-(-rows // count)) for _ in range(count)]
    return seconds_of(lambda: in_parallel(step, prepared, count), device)


@waiting("rehearsing a step of training")
def training_pass(model, rows: int, length: int, vocab_size: int) -> float:
    """Seconds for a forward and a backward pass over `rows` sequences of `length` learned tokens.

    Each worker has as many, and the result is divided by the number of workers. Leaves no gradient.
    """
    weight, count = model.lm_head.weight, workers(model)
    ids = torch.zeros(1, rows * length + 1, dtype=torch.long, device=weight.device)

    def work(_):
        with autocast(weight.device):
            hidden = model.hidden(ids[:, :-1], lengths=[length] * rows)[0]  # (rows * length, D)
        return token_log_probs(hidden, weight, ids[0, 1:], vocab_size).sum(), {}

    def passes():  # the second time the gradients exist already
        backward(model, [1] * count, 1, work, list(model.parameters()))
    seconds = seconds_of(passes, weight.device)
    model.zero_grad()
    return seconds / count


def time_line(fixed: float, per_token: float) -> str:
    """'time, rehearsed: about 8.1 minutes + 0.5 for every 100 tokens of the mean response'

    fixed: seconds in all. per_token: seconds for each token of the mean response.
    """
    return (f"time, rehearsed: about {fixed / 60:.1f} minutes + {per_token * 100 / 60:.1f} "
            "for every 100 tokens of the mean response")
