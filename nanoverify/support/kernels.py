"""What is tuned for one kind of processor: attention, matrix products, small operations on a GPU.

All of it can be left out: model.py and scoring.py then compute the same numbers, up to rounding.
Letters as in model.py.
"""
import functools
import importlib.util
import os
import shutil

import torch

# ---- precision ---------------------------------------------------------------------------------

def autocast(device):
    """bf16 where the processor computes it faster than fp32."""
    kind = torch.device(device).type
    fast = kind == "cuda"
    if kind == "cpu" and torch.backends.mkldnn.is_available():
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(kind, torch.bfloat16, enabled=fast)


def low_dtype(x) -> torch.dtype:
    """Of the inputs of matrix products: that of autocast where it is on, else that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def head_dtype(weight) -> torch.dtype:
    """Of the inputs of products with lm_head, whose results are fp32.

    It is bf16 under autocast on CUDA, else fp32. A PyTorch before 2.8 has no product that reads
    bf16 and gives fp32; there it is fp32, too.
    """
    if weight.device.type == "cuda" and "dtype" in torch.ops.aten.mm.overloads():
        return low_dtype(weight)
    return torch.promote_types(weight.dtype, torch.float32)


def product(a, b, dtype):
    """a (N, K) @ b (K, M) -> (N, M), read in `dtype`, added up and returned in at least fp32."""
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.to(dtype), b.to(dtype)
        if dtype == torch.bfloat16:
            return torch.mm(a, b, out_dtype=torch.float32)
        return a @ b


# ---- many small operations ---------------------------------------------------------------------

@functools.cache
def compiles() -> bool:
    """Is there all that torch.compile needs on a GPU: Triton and a C compiler?"""
    compiler = os.environ.get("CC") or any(map(shutil.which, ("gcc", "cc", "clang")))
    triton = importlib.util.find_spec("triton")
    return torch.cuda.is_available() and triton is not None and bool(compiler)


def few_kernels(function):
    """On CUDA `function` is compiled, so that it reads and writes memory once; elsewhere not."""
    compiled = functools.cache(lambda: torch.compile(function))

    @functools.wraps(function)
    def choose(*args):
        return compiled()(*args) if args[0].is_cuda and compiles() else function(*args)
    return choose


# ---- attention ---------------------------------------------------------------------------------

def chunked_attention(q, k, v, size: int = 256):
    """Causal attention in bf16 on a CPU: q (B, H, T, E), k and v (B, K, T, E) -> (B, H, T, E).

    `size` queries at a time, without the keys after them, as plain matrix products: on a CPU faster
    than PyTorch's fused kernel in bf16. The price: scores are rounded to bf16 before the softmax.
    """
    B, H, T, E = q.shape
    K = k.shape[1]
    # the G query heads of one key/value head read it together
    q = (q * E ** -0.5).view(B, K, H // K, T, E)
    future = torch.full((T, T), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    parts = []
    for start in range(0, T, size):
        stop = min(start + size, T)
        C = stop - start
        queries = q[:, :, :, start:stop].reshape(B, K, -1, E)
        scores = queries @ k[:, :, :stop].transpose(2, 3)  # (B, K, G * C, stop)
        scores = scores.view(B, K, -1, C, stop) + future[start:stop, :stop]
        y = scores.softmax(-1).view(B, K, -1, stop) @ v[:, :, :stop]  # (B, K, G * C, E)
        parts.append(y.view(B, K, -1, C, E))
    return torch.cat(parts, 3).view(B, H, T, E)


def has_flash(x) -> bool:
    """Can `flash_attention` take tensors like x? It is a CUDA kernel for half precision."""
    return x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16)


def flash_attention(q, k, v, starts_q, starts_k, longest_q: int, longest_k: int, causal: bool,
                    used=None):
    """Attention in each of N sequences, in one kernel. q (T, H, E), k and v (S, K, E) -> (T, H, E).

    starts   (N + 1,), int32: where each sequence begins, and the end of the last one
    longest  tokens of the longest sequence
    used     (N,), int32: how many keys of each sequence are looked at (None: all)

    It has the arguments of the operation that it calls. torch.nn.attention.varlen calls the same
    one, but its own arguments differ between versions. Dao 2023, FlashAttention-2.
    """
    return torch.ops.aten._flash_attention_forward(
        q, k, v, starts_q, starts_k, longest_q, longest_k, 0.0, causal, False, seqused_k=used)[0]
