"""A pretended GPU: tensors that say they are on "cuda:0" and hold their numbers on the CPU.

Everything runs, to the last number, on a machine without a GPU. What CUDA refuses is refused
(tensors of two devices in one operation), what makes the host wait for the device is counted, by
the function of this project that asked for it, and CUDA graphs are recorded and repeated.

Made of what PyTorch has for backends written in Python: a tensor subclass on the spare device type
PrivateUse1, and dispatch modes, which see every operation. What this cannot tell: whether CUDA has
a kernel for these types and shapes, how it rounds, memory, time, streams. Of autocast, it only has
the operations that go to low precision.
"""
import contextlib
import functools
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torch.utils.backend_registration as registration
from torch.utils._python_dispatch import TorchDispatchMode

AVAILABLE = hasattr(registration, "_setup_privateuseone_for_python_backend")
NAME = "pretended"  # of the device type, for PyTorch itself
ROOT = Path(__file__).parents[1]
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
            aten._index_put_impl_.default)
# the operations used here that autocast computes in low precision on CUDA
LOWER = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")


class Mixed(RuntimeError):
    """Tensors of two devices in one operation."""


class NotCapturable(RuntimeError):
    """What cannot be in a CUDA graph: the host waits for the device, or hands it a tensor."""


# ---- tensors -----------------------------------------------------------------------------------

def translated(x):
    """A CUDA device by the name that PyTorch knows this one by; all else as it is."""
    is_device = isinstance(x, torch.device) or isinstance(x, str) and x.startswith("cuda")
    return torch.device(NAME, 0) if is_device and torch.device(x).type == "cuda" else x


class Pretended(torch.Tensor):
    """A tensor "on cuda:0"; `numbers` is the tensor on the CPU that it stands for."""
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers):
        if torch.is_inference_mode_enabled() != numbers.is_inference():  # a view of a parameter
            with torch.inference_mode(numbers.is_inference()):
                return cls.__new__(cls, numbers)
        self = torch.Tensor._make_wrapper_subclass(
            cls, numbers.size(), strides=numbers.stride(), dtype=numbers.dtype,
            storage_offset=numbers.storage_offset(), device=torch.device(NAME, 0),
            requires_grad=numbers.requires_grad)
        self.numbers = numbers
        return self

    device = property(lambda self: torch.device("cuda", 0))
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def to(self, *args, **kwargs):
        """To "cuda:0" is no copy, since it is there."""
        named = {key: translated(value) for key, value in kwargs.items()}
        return super().to(*map(translated, args), **named)

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self):
        return f"Pretended({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function}: outside of pretended_cuda()")


def each(function, x):
    """x with function(tensor) for each tensor in its lists, tuples and dictionaries."""
    if isinstance(x, torch.Tensor):
        return function(x)
    if type(x) in (list, tuple):
        return type(x)([each(function, y) for y in x])
    if type(x) is dict:
        return {key: each(function, y) for key, y in x.items()}
    return x


def tensors_in(x) -> list:
    found = []
    each(found.append, x)
    return found


# ---- what the host waits for, and what is refused ----------------------------------------------

@functools.cache
def takes_numbers(function) -> bool:
    """Of the CPU, beside tensors on the device; a number is a tensor without dimensions."""
    return torch.Tag.pointwise in function.tags or function in (
        aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor)


@functools.cache
def asks_for_values(function) -> bool:
    """Are values, or a size that depends on them, needed on the host?"""
    depends = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
    return any(tag in function.tags for tag in depends)


def reason_to_wait(function, args, kwargs, tensors, to_device: bool) -> str:
    """What the host waits for, "" if it does not. Mixed: CUDA would raise."""
    on_host = [x for x in tensors if not isinstance(x, Pretended)]
    if function in COPIES:
        source = args[1] if function is aten.copy_.default else args[0]
        if isinstance(source, Pretended) == to_device:
            return ""
        # `copy_` has it as its third argument; to the host, `to` takes pinned memory by itself
        in_place = function is aten.copy_.default and True in args[2:3] and to_device
        if kwargs.get("non_blocking") or in_place:
            return ""
        return "copy to the device" if to_device else "copy to the host"
    generator = kwargs.get("generator")
    if to_device and generator is not None and generator.device.type != "cuda":
        raise Mixed(f"{function}: a generator on the CPU, numbers on the device")
    if len(on_host) == len(tensors):
        return ""
    if function in INDEXING:
        indices = [x for x in args[1] if x is not None]
        values = [x for x in args[2:3] if not isinstance(x, Pretended)]
        if not isinstance(args[0], Pretended) or any(x.dim() for x in values):
            raise Mixed(f"{function}: CPU numbers and CUDA indices, or the other way round")
        if not all(isinstance(x, Pretended) for x in indices):
            return "index on the CPU"  # CUDA copies it, each time
        # a single number is filled in without counting
        counted = any(x.dtype is torch.bool for x in indices) and not values
        return "boolean index" if counted else ""
    if on_host and (any(x.dim() for x in on_host) or not takes_numbers(function)):
        shapes = ", ".join(f"{tuple(x.shape)} on {x.device}" for x in tensors)
        raise Mixed(f"{function}: tensors of shapes {shapes}")
    if asks_for_values(function) and kwargs.get("output_size") is None:
        return str(function).removeprefix("aten.").partition(".")[0]
    return ""


@functools.cache
def of_project(file: str) -> bool:
    return Path(file).parent == ROOT or Path(file).is_relative_to(ROOT / "nanoverify")


def asking_function() -> str:
    """The name of the innermost function of this project, tests left out, that is being run."""
    frame = sys._getframe()
    while frame:
        name = frame.f_code.co_name
        if of_project(frame.f_code.co_filename) and name[0] != "<":  # not <lambda>
            return name
        frame = frame.f_back
    return "the test"


@functools.cache
def decomposes(function) -> bool:
    return function._can_decompose()


class Device(TorchDispatchMode):
    """Runs operations on the numbers. waits: {(function, what the host waits for): how often}."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def by_function(self) -> dict[str, int]:
        """{function: how often the host waits in it}"""
        found = Counter()
        for (function, _), times in self.waits.items():
            found[function] += times
        return dict(found)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if decomposes(function):  # in inference mode nothing has taken these apart before
            with self:
                out = function.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        tensors, asked = [], kwargs.get("device")

        def strip(x):
            tensors.append(x)
            return x.numbers if isinstance(x, Pretended) else x
        real_args, real_kwargs = each(strip, args), each(strip, kwargs)
        if function is aten.copy_.default:
            to_device = isinstance(args[0], Pretended)
        elif asked is not None:
            to_device = translated(asked).type == NAME
        else:
            to_device = any(isinstance(x, Pretended) for x in tensors)
        reason = reason_to_wait(function, args, kwargs, tensors, to_device)
        if reason:
            self.waits[asking_function(), reason] += 1
        if to_device and asked is not None:
            real_kwargs["device"] = torch.device("cpu")
        out = KERNELS.get(function, function)(*real_args, **real_kwargs)
        if not to_device:
            return out
        # what was written in place comes back as itself
        known = {id(x.numbers): x for x in tensors if isinstance(x, Pretended)}
        return each(lambda x: known[id(x)] if id(x) in known else Pretended(x), out)


# ---- kernels that a CPU does not have ----------------------------------------------------------

def flash_parts(q, k, v, starts_q, starts_k, longest_q, longest_k, causal, scale, used=None):
    """For each sequence: where its queries and keys are, q, k, v with as many heads, weights."""
    for starts in (starts_q, starts_k):
        assert starts.dtype is torch.int32 and starts.is_contiguous()
    assert used is None or used.dtype is torch.int32 and used.is_contiguous()
    assert all(x.stride(-1) == 1 for x in (q, k, v)) and q.shape[-1] % 8 == 0
    group = q.shape[1] // k.shape[1]
    for i in range(len(starts_q) - 1):
        (a, b), (c, d) = starts_q[i: i + 2].tolist(), starts_k[i: i + 2].tolist()
        d = d if used is None else c + int(used[i])
        assert b - a <= longest_q and d - c <= longest_k
        own, keys = q[a:b].float(), k[c:d].float().repeat_interleave(group, 1)
        scores = torch.einsum("qhe,khe->hqk", own, keys) * scale
        if causal:  # the last query sees the last key
            later = torch.ones(b - a, d - c, dtype=torch.bool).triu(1 + (d - c) - (b - a))
            scores = scores.masked_fill(later, float("-inf"))
        values = v[c:d].float().repeat_interleave(group, 1)
        yield slice(a, b), slice(c, d), own, keys, values, scores.softmax(-1)


def flash_forward(q, k, v, starts_q, starts_k, longest_q, longest_k, dropout, causal, debug, *,
                  scale=None, seqused_k=None, **others):
    out, nothing = torch.full_like(q, float("nan")), torch.empty(0)
    scale = scale or q.shape[-1] ** -0.5
    parts = flash_parts(q, k, v, starts_q, starts_k, longest_q, longest_k, causal, scale, seqused_k)
    for queries, _, _, _, values, weights in parts:
        out[queries] = torch.einsum("hqk,khe->qhe", weights, values).to(q.dtype)
    return out, nothing, nothing, nothing, nothing


def flash_backward(grad, q, k, v, out, sums, starts_q, starts_k, longest_q, longest_k, dropout,
                   causal, rng, unused, *, scale=None, **others):
    scale = scale or q.shape[-1] ** -0.5
    grads = [torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v)]
    parts = flash_parts(q, k, v, starts_q, starts_k, longest_q, longest_k, causal, scale)
    for queries, seen, own, keys, values, weights in parts:
        g = grad[queries].float()
        of_weights = torch.einsum("qhe,khe->hqk", g, values)
        mean = (of_weights * weights).sum(-1, keepdim=True)
        of_scores = weights * (of_weights - mean) * scale
        grads[0][queries] += torch.einsum("hqk,khe->qhe", of_scores, keys)
        for total, wide in ((grads[1], torch.einsum("hqk,qhe->khe", of_scores, own)),
                            (grads[2], torch.einsum("hqk,qhe->khe", weights, g))):
            total[seen] += wide.view(len(wide), k.shape[1], -1, k.shape[2]).sum(2)
    return tuple(total.to(q.dtype) for total in grads)


def mm_in_fp32(a, b, dtype):
    """A product of bf16 that is added up, and given, in fp32."""
    assert a.dtype is b.dtype is torch.bfloat16 and dtype is torch.float32
    return a.float() @ b.float()


KERNELS = {aten._flash_attention_forward.default: flash_forward,
           aten._flash_attention_backward.default: flash_backward}
if "dtype" in aten.mm.overloads():  # PyTorch 2.8
    KERNELS[aten.mm.dtype] = mm_in_fp32


# ---- CUDA graphs -------------------------------------------------------------------------------

class Graph(TorchDispatchMode):
    """Stands in for torch.cuda.CUDAGraph, and within `with graph:` records.

    Recorded are operations on fixed memory. To repeat them runs no line of Python: a number that
    the host would have changed is frozen, and where it would have taken another tensor, it is the
    old one. As with CUDA, recording itself takes no step: what it wrote is put back.
    """

    def __init__(self, device: Device):
        super().__init__()
        self.device, self.operations, self.before = device, [], []

    def __exit__(self, *error):
        super().__exit__(*error)
        for tensor, numbers in reversed(self.before):
            tensor.copy_(numbers)
        self.before.clear()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, waits = kwargs or {}, self.device.waits.copy()
        infos = [argument.alias_info for argument in function._schema.arguments]
        written = [x for info, x in zip(infos, args) if info and info.is_write]
        self.before += [(tensor, tensor.clone()) for tensor in tensors_in(written)]
        out = function(*args, **kwargs)
        reasons = list(self.device.waits - waits)
        reasons += [x.shape for x in tensors_in((args, kwargs)) if x.dim() and not x.is_cuda]
        if reasons:
            raise NotCapturable(f"{function}: {reasons}")
        self.operations.append((function, args, kwargs, out))
        return out

    def pool(self):
        return "memory that graphs share"

    def replay(self):
        with torch.autocast("cuda", enabled=False):  # its casts are among the operations
            for function, args, kwargs, out in self.operations:
                for fixed, new in zip(tensors_in(out), tensors_in(function(*args, **kwargs))):
                    if fixed.numbers.data_ptr() != new.numbers.data_ptr():  # else written there
                        fixed.copy_(new)


# ---- the device --------------------------------------------------------------------------------

@functools.cache
def register():
    """The device type, once for a process. -> what must be kept for it to stay."""
    module = registration._DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    registration._setup_privateuseone_for_python_backend(NAME, module)
    library = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for name in LOWER:
        library.impl(name, functools.partial(in_low_precision, getattr(aten, name)))
    others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    others.fallback(torch.library.fallthrough_kernel)
    return library, others


def in_low_precision(function, *args, **kwargs):
    dtype = torch.get_autocast_dtype(NAME)

    def cast(x):
        return x.to(dtype) if x.dtype is torch.float32 else x
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    with torch._C._ExcludeDispatchKeyGuard(keys):
        return function(*each(cast, args), **each(cast, kwargs))


@contextlib.contextmanager
def pretended_cuda():
    """Within, "cuda:0" is a pretended GPU ("cuda" without a number is not). -> Device"""
    register()
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype

    def kind(name):
        return NAME if name == "cuda" else name

    class Autocast(torch.autocast):
        def __init__(self, device_type, *args, **kwargs):
            super().__init__(kind(device_type), *args, **kwargs)

    device = Device()
    instead = {"autocast": Autocast, "amp.autocast": Autocast,
               "is_autocast_enabled": lambda name: enabled(kind(name)),
               "get_autocast_dtype": lambda name: dtype(kind(name)),
               "cuda.is_available": lambda: True,
               "cuda._lazy_init": lambda: None,
               "cuda.synchronize": lambda *args: None,
               "cuda.get_device_properties": lambda *args: SimpleNamespace(total_memory=2 ** 36),
               "cuda.CUDAGraph": lambda: Graph(device),
               "cuda.graph": lambda graph, pool=None: graph}
    # with it, torch.tensor(numbers, device="cuda:0") is a CPU tensor and a copy, for us to see
    lifted = torch._C._only_lift_cpu_tensors()
    with contextlib.ExitStack() as stack:
        for name, value in instead.items():
            stack.enter_context(mock.patch(f"torch.{name}", value))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifted)
        torch._C._set_only_lift_cpu_tensors(True)
        yield stack.enter_context(device)
