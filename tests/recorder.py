"""A CUDA graph, emulated on the pretended GPU: one step is recorded as operations on fixed memory.

Repeating them runs no line of Python of the step: a number that the host would have changed is
frozen, and a tensor that the host would have replaced is the old one, as in a real graph. What
this cannot tell: whether a kernel may be captured, and memory that was freed while a graph still
uses it.
"""
from torch.utils._python_dispatch import TorchDispatchMode

from pretended_cuda import Device, tensors_in


class NotCapturable(RuntimeError):
    """The host waits for the device in a step that is recorded."""


class Recorder(TorchDispatchMode):
    """record(step), then replay() as often as is wanted, on the memory that the step used.

    As with CUDA, recording takes no step: what it wrote is put back.
    """

    def __init__(self, device: Device):
        super().__init__()
        self.device, self.operations, self.before = device, [], []

    def record(self, step):
        with self:
            found = step()
        for tensor, numbers in reversed(self.before):
            tensor.copy_(numbers)
        self.before.clear()
        return found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, waits = kwargs or {}, self.device.waits.copy()
        infos = [argument.alias_info for argument in function._schema.arguments]
        written = [x for info, x in zip(infos, args) if info and info.is_write]
        self.before += [(tensor, tensor.clone()) for tensor in tensors_in(written)]
        out = function(*args, **kwargs)
        if more := self.device.waits - waits:
            raise NotCapturable(f"{function}: {dict(more)}")
        self.operations.append((function, args, kwargs, out))
        return out

    def replay(self):
        for function, args, kwargs, out in self.operations:
            for fixed, new in zip(tensors_in(out), tensors_in(function(*args, **kwargs))):
                if fixed.numbers.data_ptr() != new.numbers.data_ptr():  # else it was written there
                    fixed.copy_(new)
