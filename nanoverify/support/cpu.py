"""Work on all cores of a CPU: one thread for each core, with its own part of the work.

The matrices of a small model are so small that sharing every operation among the cores, as PyTorch
does, gains little. Here each thread has its own batch of rows or its own sequences. Plain threads
will do, because PyTorch lets go of Python's global lock while it computes. The parts are fixed
beforehand, and one thread computes each. So the same work on the same number of threads gives the
same result, bit for bit.
"""
import functools
from concurrent.futures import ThreadPoolExecutor

import torch

# Parameters. The weights of a larger model should be read once for all cores. Chosen, not measured.
SMALL = 2 ** 24


def workers(model) -> int:
    """How many parts to make of the work with this model: 1 on a GPU or for a large model."""
    small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL
    on_cpu = model.lm_head.weight.device.type == "cpu"
    return torch.get_num_threads() if small and on_cpu else 1


@functools.cache
def pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(1))


def in_parallel(function, items: list, count: int) -> list:
    """[function(item) for item in items], `count` of them at a time.

    Other threads do not inherit autocast or no_grad: the function sets what it needs.
    """
    if count > 1:
        return list(pool(count).map(function, items))
    return [function(item) for item in items]
