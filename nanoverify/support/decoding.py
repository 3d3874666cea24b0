"""One step of decoding, tuned: `Transformer.hidden` for a single token, in few operations.

In small models and small batches the number of operations decides the time. On a GPU a step is
recorded once as a CUDA graph and then repeated without the host (`Replay`). So it must work on the
same memory each time. Letters as in model.py.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoverify.model import Config, angles, rotate
from nanoverify.support.kernels import (
    few_kernels,
    flash_attention,
    has_flash,
    head_dtype,
    low_dtype,
    product,
)


def next_logits(head, hidden):
    """Logits after final states hidden (B, D): (B, V), fp32 or better. head (V, D)."""
    return product(hidden, head.T, head_dtype(head))


@dataclass
class Fused:
    """A model's weights as one step of decoding reads them.

    Products with the same input are one matrix, into which the gains of the norm before them are
    multiplied.
    """
    config: Config
    frequencies: torch.Tensor  # (E/2,)
    embedding: torch.Tensor  # (V, D)
    head: torch.Tensor  # (V, D), rows of ids that exist, as products with it read it
    gain: torch.Tensor  # of the last norm, (D,)
    layers: list[dict]
    dtype: torch.dtype  # of layers and cache
    # (x, y), (B, D) each -> x + y, and its RMSNorm without gain; a constant factor of the norm is
    # in the weights
    norm: Callable


def fuse(model, vocab_size: int | None = None) -> Fused:
    """vocab_size: ids that exist; the others are padding of the weight matrix (None: all exist)."""
    config, weight = model.config, model.lm_head.weight
    dtype, on_gpu = low_dtype(weight), weight.device.type == "cuda"
    norm, constant = plain_norm(config) if on_gpu else short_norm(config, weight.device)
    layers = [fused_layer(layer, config, dtype, constant) for layer in model.model["layers"]]
    head = weight[:vocab_size].to(head_dtype(weight))
    frequencies = model.frequencies.to(weight.device)
    return Fused(config, frequencies, model.model["embed_tokens"].weight, head,
                 model.model["norm"].weight, layers, dtype, norm)


def fused_layer(layer, config: Config, dtype, constant: float) -> dict:
    H, K = config.num_attention_heads, config.num_key_value_heads
    attention, mlp = layer.self_attn, layer.mlp
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    gate_up = (mlp.gate_proj, mlp.up_proj)
    bias = torch.cat([linear.bias for linear in qkv]).to(dtype) if config.qkv_bias else None
    norms = None
    if config.qk_norm:
        norms = torch.cat([attention.q_norm.weight.expand(H, -1),
                           attention.k_norm.weight.expand(K, -1)])  # (H + K, E)

    def joined(linears, norm):
        weights = torch.cat([linear.weight for linear in linears])
        return (weights * (norm.weight * constant)).to(dtype)

    return {"qkv": joined(qkv, layer.input_layernorm),  # ((H + 2K) * E, D)
            "bias": bias,
            "norms": norms,
            "o": attention.o_proj.weight.to(dtype),
            "gate_up": joined(gate_up, layer.post_attention_layernorm),
            "down": mlp.down_proj.weight.to(dtype)}


@few_kernels
def add_and_norm(x, y, eps: float):
    x = x + y
    return x, F.rms_norm(x, x.shape[-1:], None, eps).to(y.dtype)


def plain_norm(config: Config):
    """(norm, 1): PyTorch's own, one kernel on CUDA."""
    return lambda x, y: add_and_norm(x, y, config.rms_norm_eps), 1.0


def short_norm(config: Config, device):
    """(norm, sqrt(D)): x / sqrt(sum(x^2) + D * eps), three operations on a CPU."""
    small = torch.tensor((config.hidden_size * config.rms_norm_eps) ** 0.5, device=device)

    def norm(x, y):
        x = x + y
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x, (x / torch.hypot(size, small)).to(y.dtype)
    return norm, config.hidden_size ** 0.5


@few_kernels
def place(qkv, rotation, slots, keys, values, norms, eps: float):
    """Rotate queries and keys, and write keys and values into the cache. -> the queries, (B, H, E)

    qkv (B, H + 2K, E); rotation: cos and sin, (B, 1, E) each; slots (B * K,): places in keys and
    values (all, E); norms (H + K, E): gains of the norms before the rotation, or None.
    """
    E, K = qkv.shape[-1], len(slots) // len(qkv)
    qk = qkv[:, :-K].float() if qkv.dtype == torch.bfloat16 else qkv[:, :-K]
    if norms is not None:
        qk = F.rms_norm(qk, (E,), None, eps) * norms
    qk = rotate(qk, *rotation).to(qkv.dtype)
    keys.index_copy_(0, slots, qk[:, -K:].reshape(-1, E))
    values.index_copy_(0, slots, qkv[:, -K:].reshape(-1, E))
    return qk[:, :-K].contiguous()


@few_kernels
def gated(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def decode(fused: Fused, ids, cache):
    """Read one more token of every row, ids (B,): the logits that follow, (B, V).

    The cache must have a free slot for it (`reserve`).
    """
    with torch.autocast(ids.device.type, enabled=False):  # the precisions are chosen here
        count, ids = len(ids), F.pad(ids, (0, cache.rows - len(ids)))  # with idle rows
        c, B, dtype = fused.config, len(ids), fused.dtype
        H, K, E, D = c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.hidden_size
        S, lengths = cache.slots, cache.lengths[:B]
        # where the new token goes, (B * K,)
        firsts = torch.arange(B * K, device=ids.device).view(B, K) * S
        slots = (firsts + lengths[:, None]).flatten()
        attend = attention_to(cache, B, H // K)
        rotation = angles(lengths, fused.frequencies)  # cos and sin, (B, 1, E) each
        x, y = fused.embedding[ids], torch.zeros((), dtype=dtype, device=ids.device)  # (B, D)
        for i, layer in enumerate(fused.layers):
            x, z = fused.norm(x, y)
            qkv = F.linear(z, layer["qkv"], layer["bias"]).view(B, H + 2 * K, E)
            keys, values = cache.k[i].view(-1, E), cache.v[i].view(-1, E)
            # (B, H, E)
            q = place(qkv, rotation, slots, keys, values, layer["norms"], c.rms_norm_eps)
            # the G query heads of one key/value head read it together: nothing is copied
            y = F.linear(attend(i, q.view(B * K, H // K, E)).view(B, H * E), layer["o"])
            x, z = fused.norm(x, y)
            y = F.linear(gated(F.linear(z, layer["gate_up"])), layer["down"])
        cache.advance()
        last = F.rms_norm((x + y)[:count], (D,), fused.gain, c.rms_norm_eps)
        return next_logits(fused.head, last)


def attention_to(cache, B: int, G: int):
    """attend(layer, q) to the new token of each row and all before it.

    q (B * K, G, E) -> (B * K, G, E).
    """
    K, S, E = cache.k[0].shape[1:]
    lengths = cache.lengths[:B]
    if has_flash(cache.k[0]):
        # each key/value head of each row is a sequence of its own with G queries, so that only
        # tokens that exist are read
        pairs = torch.arange(B * K + 1, device=lengths.device, dtype=torch.int32)
        starts_q, starts_k = pairs * G, pairs * S
        used = (lengths + 1).int()[:, None].expand(B, K).contiguous().view(-1)

        def attend(layer, q):
            k, v = (x[:B].view(B * K * S, 1, E) for x in (cache.k[layer], cache.v[layer]))
            q = q.view(B * K * G, 1, E)
            y = flash_attention(q, k, v, starts_q, starts_k, G, S, False, used)
            return y.view(B * K, G, E)
        return attend
    mask = cache.mask().expand(B, K, 1, S).reshape(B * K, 1, S)

    def attend(layer, q):
        k, v = (x[:B].flatten(0, 1) for x in (cache.k[layer], cache.v[layer]))  # (B * K, S, E)
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=E ** -0.5)  # (B * K, G, S)
        return torch.bmm(scores.softmax(-1), v)
    return attend


class Replay:
    """Runs work that does the same to the same memory each time.

    On CUDA it is recorded as a graph and repeated. The first run of each key is an ordinary one, in
    which libraries set themselves up; the second is recorded.
    """

    def __init__(self, device):
        self.records = torch.device(device).type == "cuda" and torch.cuda.is_available()
        self.graphs = {}

    def __call__(self, key, work):
        if not self.records or key not in self.graphs:
            self.graphs[key] = None
            return work()
        if self.graphs[key] is None:
            # the graphs share their temporary memory, because one runs after the other
            pool = next((graph.pool() for graph in self.graphs.values() if graph), None)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                work()
            self.graphs[key] = graph
        self.graphs[key].replay()
