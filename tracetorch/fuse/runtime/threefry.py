"""Generate random numbers from a counter with Threefry-2x32: in PyTorch, and compiled for the CPU.

A number depends on a key and a counter alone, not on how many were drawn before, so that every
device and every order of drawing gives the same. All is done in integers: equal to the bit.

Reference: Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from tracetorch.fuse.codegen.targets import real_name
from tracetorch.fuse.runtime.kernel_cache import TaskKernel, compiled_tasks
from tracetorch.fuse.runtime.memory import address, large_empty
from tracetorch.fuse.runtime.threads import run_tasks

_MASK = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of four rounds, in turns
_PARITY = 0x1BD11BDA
_ROUNDS = 20
_LANES = 1024  # of a task

_MODULE = '''"""Uniform random numbers from a counter, for tracetorch.fuse."""

import numpy as np
from numba.extending import register_jitable

real = np.{real}
half, unit = real(0.5), real(2.0**-23)
mask, parity = {mask}, np.uint32({parity})


@register_jitable
def rotated(value, bits):
    """Rotate 32 bits to the left; the casts keep Numba from going on in 64."""
    return np.uint32(np.uint32(value << np.uint32(bits)) | (value >> np.uint32(32 - bits)))


def uniforms(first, last, lanes, steps, position, one, other):
    """Fill two sequences: lane l has the key l, and the counter position[l] + t at step t."""
    for task in range(first, last):
        low = task * {lanes}
        width = min({lanes}, lanes - low)
        starts = position[low : low + width]
        for t in range(steps):
            out0 = one[t * lanes + low : t * lanes + low + width]
            out1 = other[t * lanes + low : t * lanes + low + width]
            for i in range(width):
                k0, k1 = np.uint32((low + i) & mask), np.uint32((low + i) >> 32)
                k2 = np.uint32(k0 ^ k1 ^ parity)
                counter = starts[i] + t
                a = np.uint32(np.uint32(counter & mask) + k0)
                b = np.uint32(np.uint32((counter >> 32) & mask) + k1)
{rounds}
                out0[i] = (real(np.int32(a >> np.uint32(9))) + half) * unit
                out1[i] = (real(np.int32(b >> np.uint32(9))) + half) * unit
'''


def threefry(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return two words of 32 random bits for each key and counter.

    Args:
        key: two words of 32 bits, as int64.
        counter: two words of 32 bits, as int64.

    Example:
        >>> zero = torch.tensor(0)
        >>> [hex(int(word)) for word in threefry((zero, zero), (zero, zero))]
        ['0x6b200159', '0x99ba4efe']
    """
    keys = (*key, key[0] ^ key[1] ^ _PARITY)
    a, b = (counter[0] + keys[0]) & _MASK, (counter[1] + keys[1]) & _MASK
    for turn in range(_ROUNDS // 4):
        for bits in _ROTATIONS[turn % 2]:
            a = (a + b) & _MASK
            b = (((b << bits) & _MASK) | (b >> (32 - bits))) ^ a
        a = (a + keys[(turn + 1) % 3]) & _MASK
        b = (b + keys[(turn + 2) % 3] + turn + 1) & _MASK
    return a, b


def uniforms(position: Tensor, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two sequences of random numbers, uniform in (0, 1): lane l of step t has the key l.

    They are the same in every dtype.

    Args:
        position: the counter of every lane at the first step, int64, not negative; it advances by
            one in each step.
        steps: how many.
        dtype: float32 or float64.

    Shape:
        ``position`` ``[...]``; both results ``[steps, ...]``.
    """
    time = torch.arange(steps, device=position.device).reshape(steps, *[1] * position.ndim)
    lane = torch.arange(position.numel(), device=position.device).reshape(position.shape)
    counter = position + time
    words = threefry((lane & _MASK, lane >> 32), (counter & _MASK, counter >> 32))
    # 23 bits, and half of the last one: never 0, never 1, and exact in float32
    one, other = [((word >> 9).to(dtype) + 0.5) * 2.0**-23 for word in words]
    return one, other


def compiled_uniforms(position: Tensor, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what :func:`uniforms` does, of a plain tensor on the CPU."""
    shape, lanes = (steps, *position.shape), position.numel()
    one, other = large_empty(shape, dtype), large_empty(shape, dtype)
    if one.numel():
        position = position.contiguous()
        memory = (address(position, torch.int64), address(one, dtype), address(other, dtype))
        work = one.numel() * 6 * _ROUNDS
        run_tasks(_kernel(dtype), (lanes, steps, *memory), -(-lanes // _LANES), work=work)
    return one, other


@functools.cache
def _kernel(dtype: torch.dtype) -> TaskKernel:
    from numba import types

    # written out: a loop over rounds would not be vectorised over lanes
    lines: list[str] = []
    for turn in range(_ROUNDS // 4):
        for bits in _ROTATIONS[turn % 2]:
            lines += ["a = np.uint32(a + b)", f"b = np.uint32(rotated(b, {bits}) ^ a)"]
        lines.append(f"a = np.uint32(a + k{(turn + 1) % 3})")
        lines.append(f"b = np.uint32(b + np.uint32(k{(turn + 2) % 3} + np.uint32({turn + 1})))")
    rounds = "\n".join(" " * 16 + line for line in lines)
    numbers = {"mask": _MASK, "parity": _PARITY, "lanes": _LANES}
    source = _MODULE.format(real=real_name(dtype), rounds=rounds, **numbers)
    real = getattr(types, real_name(dtype))[::1]
    arguments = [*[types.int64] * 4, types.int64[::1], real, real]
    return compiled_tasks(source, "uniforms", types.void(*arguments))
