"""A decoder-only transformer in the Llama layout, with Hugging Face parameter names.

One file serves Llama 2/3, SmolLM2, Mistral (full attention), Qwen2/2.5 and Qwen3. They differ in
four fields of `Config` (`qkv_bias`, `qk_norm`, `head_dim`, `rope_scaling`), all read from
`config.json`.

Legend of letters, for the whole project:
    B sequences, T tokens, D width, V vocabulary, S cache slots,
    H query heads, K key/value heads, G = H / K, E head size
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from nanoverify.support.kernels import (
    chunked_attention,
    few_kernels,
    flash_attention,
    has_flash,
    low_dtype,
)

# architectures[0] in config.json -> what that layout does beyond Llama
SUPPORTED = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"qkv_bias": True},
    "Qwen3ForCausalLM": {"qk_norm": True},
}


@dataclass(frozen=True)
class Config:
    """The fields of a Hugging Face config.json that change the result, and nothing else."""
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict | None
    tie_word_embeddings: bool
    qkv_bias: bool = False
    qk_norm: bool = False

    @classmethod
    def from_dict(cls, raw: dict) -> "Config":
        """Read the content of a config.json.

        ValueError: an architecture or a setting that is not supported.
        """
        by_type = {name.removesuffix("ForCausalLM").lower(): name for name in SUPPORTED}
        names = raw.get("architectures") or [by_type.get(str(raw.get("model_type")))]
        architecture = names[0] if isinstance(names, list) else names
        if not isinstance(architecture, str) or architecture not in SUPPORTED:
            raise ValueError(f"architecture {architecture!r} is not supported; "
                             f"supported are {', '.join(SUPPORTED)}")
        # transformers 5 writes rope_parameters, transformers 4 wrote rope_theta and rope_scaling
        rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
        theta = rope.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0
        kind = rope.get("rope_type") or rope.get("type") or "default"
        window = raw.get("sliding_window", 4096)  # where it is absent transformers takes 4096
        refused = {
            "hidden_act": raw.get("hidden_act", "silu") != "silu",
            "rope_scaling": kind not in ("default", "linear", "llama3"),
            "sliding_window": has_window(raw, architecture, window),
            "mlp_bias": bool(raw.get("mlp_bias")),
            # a fourth bias, on o_proj: no released model of these families has it
            "attention_bias": bool(raw.get("attention_bias")),
            "quantization_config": bool(raw.get("quantization_config")),
            "partial_rotary_factor": raw.get("partial_rotary_factor", 1.0) != 1.0,
            "pretraining_tp": raw.get("pretraining_tp", 1) != 1,
        }
        for field in (name for name, bad in refused.items() if bad):
            value = {"rope_scaling": kind, "sliding_window": window}.get(field, raw.get(field))
            raise ValueError(f"{field}={value!r} is not supported for {architecture}; supported "
                             "are silu, rope_scaling default/linear/llama3, full attention, no "
                             "bias on o_proj or MLP, no quantization")
        try:
            heads = raw["num_attention_heads"]
            return cls(
                architecture=architecture,
                vocab_size=raw["vocab_size"],
                hidden_size=raw["hidden_size"],
                intermediate_size=raw["intermediate_size"],
                num_hidden_layers=raw["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=raw.get("num_key_value_heads") or heads,
                head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
                max_position_embeddings=raw["max_position_embeddings"],
                rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
                rope_theta=float(theta),
                rope_scaling=None if kind == "default" else {**rope, "rope_type": kind},
                tie_word_embeddings=raw.get("tie_word_embeddings", False),
                **SUPPORTED[architecture])
        except KeyError as missing:
            raise ValueError(f"field {missing} is missing")


def has_window(raw: dict, architecture: str, window) -> bool:
    """Is there a layer that sees less than the whole context?"""
    context = raw.get("max_position_embeddings")
    whole = isinstance(window, int) and isinstance(context, int) and window >= context
    if not window or whole:
        return False
    if not raw.get("use_sliding_window"):
        return architecture == "MistralForCausalLM"  # the other families need the switch
    kinds, first = raw.get("layer_types"), raw.get("max_window_layers", 0)
    return "sliding_attention" in kinds if kinds else first < raw.get("num_hidden_layers", math.inf)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in fp32. Zhang and Sennrich 2019."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x, dtype=None):
        """The result is in `dtype` (None: that of x)."""
        return normalise(x, self.weight, self.eps, dtype or x.dtype)


@few_kernels
def normalise(x, weight, eps: float, dtype):
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(dtype)


def rope_frequencies(config: Config) -> torch.Tensor:
    """Angle per position for each pair of head dimensions, (E/2,).

    Su et al. 2021; `llama3` scaling as in Llama 3.1.
    """
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequency = 1 / config.rope_theta ** exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    if scaling["rope_type"] == "linear":
        return frequency / scaling["factor"]
    # llama3: long wavelengths are stretched by `factor`, short ones kept, those between blended
    wavelength = 2 * math.pi / frequency
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = (scaling["original_max_position_embeddings"] / wavelength - low) / (high - low)
    keep = keep.clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / scaling["factor"]


def rotate(x, cos, sin):
    """Rotary embedding in Hugging Face's half-split order.

    x (..., heads, E); cos, sin (..., 1, E), as `angles` makes them.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((b, a), -1), sin)


@few_kernels
def rotate_in_fp32(x, cos, sin):
    return rotate(x.float(), cos, sin).to(x.dtype)


def angles(positions, frequencies):
    """cos and sin for `rotate`: positions (...), frequencies (E/2,) -> (..., 1, E) each.

    The first half of sin is negated.
    """
    angle = positions[..., None, None] * frequencies
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def causal_attention(q, k, v):
    """q (B, H, T, E), k and v (B, K, T, E) -> (B, H, T, E)."""
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return chunked_attention(q, k, v)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


def masked_attention(q, k, v, mask):
    """q (B, H, T, E), k and v (B, K, S, E) -> (B, H, T, E).

    mask (B, 1, T, S): False or -inf where a token may not look.
    """
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def packed_attention(q, k, v, lengths: list[int]):
    """Causal attention in each of the sequences that lie one after the other in the T tokens.

    q (1, H, T, E), k and v (1, K, T, E) -> (1, H, T, E).
    """
    parts = zip(*(x.split(lengths, 2) for x in (q, k, v)))
    return torch.cat([causal_attention(*part) for part in parts], 2)


def starts_of(lengths: list[int], device):
    """Where each of the sequences begins, and the end of the last one, (N + 1,), int32."""
    starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return starts.to(device, non_blocking=True)


def layout(ids, attention_mask, lengths):
    """Who sees whom: positions (B or 1, T), and a function attend(layer, q, k, v).

    q (B, H, T, E), k and v (B, K, T, E).
    """
    T, device = ids.shape[1], ids.device
    if attention_mask is not None:
        return left_padded_layout(attention_mask.bool())
    if lengths is None:
        positions = torch.arange(T, device=device)[None]
        return positions, lambda layer, q, k, v: causal_attention(q, k, v)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    positions = positions.to(device, non_blocking=True)
    starts, longest = starts_of(lengths, device), max(lengths)

    def attend(layer, q, k, v):
        if not has_flash(q):
            return packed_attention(q, k, v, lengths)
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (T, H, E), (T, K, E)
        y = flash_attention(q, k, v, starts, starts, longest, longest, True)
        return y.transpose(0, 1)[None]
    return positions, attend


def left_padded_layout(seen):
    """`layout` where seen (B, T) is False on padding."""
    T, device = seen.shape[1], seen.device
    positions = (seen.long().cumsum(1) - 1).clamp(min=0)
    past = torch.ones(T, T, dtype=torch.bool, device=device).tril()
    # padding sees itself, because a softmax over nothing is not a number
    mask = (past & seen[:, None, None, :]) | torch.eye(T, dtype=torch.bool, device=device)
    return positions, lambda layer, q, k, v: masked_attention(q, k, v, mask)  # mask (B, 1, T, T)


def cached_layout(cache, T: int):
    """`layout` for T more tokens of each row, which also see what the cache holds."""
    mask = cache.mask(T)

    def attend(layer, q, k, v):
        k, v = cache.append(layer, k, v)
        return causal_attention(q, k, v) if mask is None else masked_attention(q, k, v, mask)
    return cache.positions(T), attend


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        D, E = config.hidden_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        self.heads, self.kv_heads, self.head_dim = H, K, E
        self.q_proj = nn.Linear(D, H * E, bias=config.qkv_bias)
        self.k_proj = nn.Linear(D, K * E, bias=config.qkv_bias)
        self.v_proj = nn.Linear(D, K * E, bias=config.qkv_bias)
        self.o_proj = nn.Linear(H * E, D, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(E, config.rms_norm_eps)
            self.k_norm = RMSNorm(E, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def forward(self, x, cos, sin, attend, layer):
        B, T, _ = x.shape
        H, K, E = self.heads, self.kv_heads, self.head_dim
        q = self.q_proj(x).view(B, T, H, E)
        k = self.k_proj(x).view(B, T, K, E)
        v = self.v_proj(x).view(B, T, K, E).transpose(1, 2)  # (B, K, T, E)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate_in_fp32(q, cos, sin).transpose(1, 2)  # (B, H, T, E)
        k = rotate_in_fp32(k, cos, sin).transpose(1, 2)  # (B, K, T, E)
        return self.o_proj(attend(layer, q, k, v).transpose(1, 2).reshape(B, T, H * E))


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))


@few_kernels
def gated(gate, up):
    """SwiGLU. Shazeer 2020."""
    return F.silu(gate) * up


class Layer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, cos, sin, attend, layer):
        low = low_dtype(x)  # of products; x itself keeps its precision
        x = x + self.self_attn(self.input_layernorm(x, low), cos, sin, attend, layer)
        return x + self.mlp(self.post_attention_layernorm(x, low))


class Transformer(nn.Module):
    """ids (B, T) -> logits (B, T, V). Right padding needs no mask, since attention is causal."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict({
            "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
            "layers": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers)),
            "norm": RMSNorm(config.hidden_size, config.rms_norm_eps),
        })
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model["embed_tokens"].weight
        # not a buffer, which .to(torch.bfloat16) would round: angles of far positions would be lost
        self.frequencies = rope_frequencies(config)
        # True: keep only the input of each layer for the backward pass, and compute the rest again
        self.recompute = False

    def hidden(self, ids, attention_mask=None, cache=None, lengths=None):
        """Final hidden states (B, T, D), from which `lm_head` makes logits where they are needed.

        lengths         the T tokens are sequences of these lengths, one after the other without
                        padding, which do not see each other
        attention_mask  (B, T), 1 on tokens and 0 on padding; needed only for padding on the left;
                        positions count from the first token
        cache           what was read before, as in sampler.KVCache: an object with positions(T)
                        (B, T); mask(T) (B, 1, T, S), added to the scores, None if it is empty; and
                        append(layer, k, v) -> k, v (B, K, S, E)
        """
        x = self.model["embed_tokens"](ids)  # (B, T, D)
        if cache is not None:
            positions, attend = cached_layout(cache, ids.shape[1])
        else:
            positions, attend = layout(ids, attention_mask, lengths)
        self.frequencies = self.frequencies.to(ids.device)
        cos, sin = angles(positions, self.frequencies)  # (B or 1, T, 1, E)
        for i, layer in enumerate(self.model["layers"]):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, attend, i, use_reentrant=False,
                               preserve_rng_state=False)
            else:
                x = layer(x, cos, sin, attend, i)
        return self.model["norm"](x)

    def forward(self, ids, attention_mask=None, cache=None):
        return self.lm_head(self.hidden(ids, attention_mask, cache))
