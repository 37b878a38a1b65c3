"""Generate random numbers from a counter with Threefry-2x32: in PyTorch, and for CPU and GPU.

A number depends on a key and a counter alone: every device and order of drawing gives the same.
Reference: Salmon, Moraes, Dror, Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.fuse.codegen.llvm_tasks import TaskWriter
from tracetorch.fuse.codegen.llvm_writer import WORD, Value
from tracetorch.fuse.runtime.allocation import large_empty
from tracetorch.fuse.runtime.threads import run_written

_MASK = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of four rounds, in turns
_PARITY = 0x1BD11BDA
_ROUNDS = 20
_LANES = 1024  # of a task
_WIDTH = 16  # lanes that are computed at a time


def threefry(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return two words of 32 random bits for each key and counter.

    Example:
        >>> zero = torch.tensor(0)
        >>> [hex(int(word)) for word in threefry((zero, zero), (zero, zero))]
        ['0x6b200159', '0x99ba4efe']
    """
    keys = (*key, key[0] ^ key[1] ^ _PARITY)
    a, b = (counter[0] + keys[0]) & _MASK, (counter[1] + keys[1]) & _MASK
    for rounds in range(_ROUNDS // 4):
        for bits in _ROTATIONS[rounds % 2]:
            a = (a + b) & _MASK
            b = (((b << bits) & _MASK) | (b >> (32 - bits))) ^ a
        a = (a + keys[(rounds + 1) % 3]) & _MASK
        b = (b + keys[(rounds + 2) % 3] + rounds + 1) & _MASK
    return a, b


def uniforms(position: Tensor, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two sequences in (0, 1) of any dtype, by counters from ``position`` and key l."""
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
        tasks, work = -(-lanes // _LANES), one.numel() * 6 * _ROUNDS
        given = lanes, steps, position.contiguous(), one, other
        run_written(threefry_uniforms, "iilrr", dtype, tasks, *given, work=work)
    return one, other


def threefry_uniforms(k: TaskWriter, real: str) -> None:
    """Fill two sequences: lane l has the key l, and the counter position[l] + t at step t."""
    lanes, steps = k.integers(2)
    position, one, other = k.array(WORD), k.array(real), k.array(real)
    numbers, vector = f"<{_WIDTH} x i32>", f"<{_WIDTH} x {real}>"
    low = k.number * _LANES
    with k.loop(0, steps) as step, k.loop(low, k.least(low + _LANES, lanes), step=_WIDTH) as block:
        # of lanes that are behind the last one nothing is read or written
        lane, left = block.index, lanes - block.index
        counter = position.some(lane, left, _WIDTH) + k.spread(step.index, _WIDTH)
        keys = [k.spread(word, _WIDTH) for word in _words(k, lane, "i32")]
        # a block begins with a multiple of its width, and has one higher word
        keys[0] = keys[0] + k.numbered(_WIDTH, "i32")
        keys.append(keys[0] ^ keys[1] ^ _PARITY)
        a, b = (word + key for word, key in zip(_words(k, counter, numbers), keys, strict=False))
        for rounds in range(_ROUNDS // 4):
            for bits in _ROTATIONS[rounds % 2]:
                a = a + b
                rotation = k.literal(bits, numbers)
                b = k.intrinsic(f"llvm.fshl.v{_WIDTH}i32", numbers, b, b, rotation) ^ a
            a = a + keys[(rounds + 1) % 3]
            b = b + keys[(rounds + 2) % 3] + (rounds + 1)
        for out, word in ((one, a), (other, b)):
            uniform = (k.convert("sitofp", word >> 9, vector) + 0.5) * 2.0**-23
            out.store_some(step.index * lanes + lane, left, uniform)


def triton_source(real: str) -> str:
    """Return the module of a Triton kernel that fills two sequences: a value in each lane."""
    lines = [
        "import triton",
        "import triton.language as tl",
        '@triton.jit(do_not_specialize=["lanes", "values"])',
        "def uniforms(at_position, at_one, at_other, lanes, values, BLOCK: tl.constexpr):",
        "    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
        "    inside = place < values",
        "    lane = place % lanes",
        "    counter = tl.load(at_position + lane, mask=inside, other=0) + place // lanes",
        "    k0, k1 = lane.to(tl.uint32), (lane >> 32).to(tl.uint32)",
        f"    k2 = k0 ^ k1 ^ {_PARITY}",
        "    a, b = counter.to(tl.uint32) + k0, (counter >> 32).to(tl.uint32) + k1",
    ]
    for rounds in range(_ROUNDS // 4):
        for bits in _ROTATIONS[rounds % 2]:
            lines += ["    a = a + b", f"    b = ((b << {bits}) | (b >> {32 - bits})) ^ a"]
        first, second = (rounds + 1) % 3, (rounds + 2) % 3
        lines += [f"    a = a + k{first}", f"    b = b + k{second} + {rounds + 1}"]
    for name, word in (("one", "a"), ("other", "b")):
        uniform = f"(({word} >> 9).to(tl.{real}) + 0.5) * {2.0**-23!r}"
        lines.append(f"    tl.store(at_{name} + place, {uniform}, mask=inside)")
    return "\n".join([*lines, ""])


def _words(k: TaskWriter, value: Value, kind: str) -> list[Value]:
    """Return the lower and the higher half of integers."""
    return [k.convert("trunc", part, kind) for part in (value, value >> 32)]
