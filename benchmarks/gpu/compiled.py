"""Compile kernels for GPUs that are not there, and count what the compiler made of them.

Triton compiles for any card on any machine, and brings NVIDIA's assembler and disassembler. So it
is known of each kernel whether it compiles, what it takes of a card, and whether its arithmetic is
still that of the step. What it computes there is not known before it has run.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tracetorch.fuse.codegen.triton_loops import arguments, compile_options, triton_source
from tracetorch.fuse.ir.kernel import (
    Dtype,
    For,
    Lanes,
    Load,
    Operation,
    Role,
    Schedule,
    Statement,
    Store,
    statements,
    without_dead_lines,
)
from tracetorch.fuse.runtime.machine_code import module_of

# Name of a card's architecture: Triton's backend, its architecture, lanes of a warp.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_75": ("cuda", 75, 32),
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "sm_120": ("cuda", 120, 32),
    "gfx942": ("hip", "gfx942", 64),
    "gfx1100": ("hip", "gfx1100", 32),
}
_POINTERS = {Dtype.FLOAT32: "*fp32", Dtype.FLOAT64: "*fp64"}
# A multiplication and an addition in one instruction, or in a call of a function that is one.
_FUSED = re.compile(r"^\s*(?:@\S+\s+)?(?:fma|mad)\.r\w\S*\.f(?:32|64)\b", re.M)
_FUSED_AMD = re.compile(r"\bv_(?:pk_)?(?:fma|fmac|fmaak|fmamk|mad|mac)_f(?:32|64)")
_FUSED_CALL = re.compile(r"\bcall .*@llvm\.(?:nvvm\.)?fma\.(?:v(\d+))?")
_MAY_FUSE = re.compile(r"\bf(?:add|sub|mul|neg|div) (?:\w+ )*(?:contract|fast)\b|@llvm\.fmuladd\.")
# Lines whose instructions are many on AMD: divisions, roots, places of lanes.
_FUNCTION = re.compile(r"tl\.fma|tl\.\w+_rn|tl\.sqrt|/")
_FLUSH = re.compile(r"^(?!.*\.approx\.).*\.ftz\b.*$", re.M)
_NARROW = re.compile(r"arith\.muli .* : i32\b")
_DOUBLE = re.compile(r"\b(?:arith|math)\.(?!constant)\w+ .*f64")


@dataclass(frozen=True)
class Compiled:
    """Figures of a kernel that was compiled for a target."""

    registers: int
    """Of a thread, 32 bits each."""
    spilled: int
    """Bytes of registers that are written to memory and read again, in all."""
    local: int
    """Bytes of memory of a thread: those that are spilled, and arrays of functions."""
    shared: int
    """Bytes of shared memory of a block."""
    contracted: int
    """Number of instructions that multiply and add with one rounding, outside of functions."""
    flushed: int
    """Number of instructions, but approximations in functions, that make tiny numbers zero."""
    widened: int
    """Number of operations in float64 that a kernel in float32 does not ask for."""
    narrow: int
    """Number of products of integers of 32 bits, which a place in a long sequence leaves."""
    assembly: str = field(repr=False)
    """Text of the kernel in the assembly language of the target's compiler."""
    source: str = field(repr=False)
    """As printed for Triton."""
    kernel: Schedule = field(repr=False)
    binary: bytes = field(repr=False)

    @cached_property
    def loops(self) -> list[tuple[list[str], int]]:
        """Instructions of each loop over time, and how many steps they take; none for AMD."""
        if not self.assembly.lstrip().startswith("//"):
            return []
        return _over_time(_loops(self.binary, _depth(self.kernel.body)), self.kernel)

    @property
    def spilled_in_loops(self) -> int:
        """Number of loads and stores of registers in the loops over time; of AMD's anywhere."""
        if not self.spilled:
            return 0
        code = [each for loop, _ in self.loops for each in loop]
        return sum(bool(re.search(r"\b(?:STL|LDL)\b", each)) for each in code) if code else 1

    @property
    def instructions(self) -> float:
        """Number of instructions of a warp in a step, over all loops over time."""
        return sum(len(loop) / steps for loop, steps in self.loops)


def compiled(kernel: Schedule, target: str, *, large: bool = False, **options: Any) -> Compiled:
    """Compile a kernel as a launch does, and return what is known of the result.

    Args:
        kernel: the kernel.
        target: one of :data:`TARGETS`.
        large: whether sizes take 64 bits; else they take 32.
        options: of Triton, in place of those of a launch.

    Raises:
        triton.CompilationError: it does not compile.
    """
    known = {**compile_options(TARGETS[target][0]), **options}
    constants = (("BLOCK", known.pop("BLOCK")),)
    printed = (kernel, triton_source(kernel), tuple(arguments(kernel)))
    return compiled_source(*printed, target, constants, tuple(known.items()), large=large)


@functools.lru_cache(maxsize=1024)
def compiled_source(
    kernel: Schedule,
    source: str,
    names: tuple[str, ...],
    target: str,
    constants: tuple[tuple[str, Any], ...],
    options: tuple[Any, ...],
    *,
    large: bool = False,
    aligned: int = 0,
) -> Compiled:
    """Compile a printed kernel; of its arguments, by ``names``, all but some are ``aligned``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    backend, arch, warp = TARGETS[target]
    function = getattr(module_of(source, f"triton_{kernel.name}"), kernel.name)
    known = [
        i for i, name in enumerate(names) if name not in ("steps", "every", "segments", "taps")
    ]
    divisible = {(i,): [["tt.divisibility", aligned]] for i in known} if aligned else None
    types = _signature(kernel, names, large) | {name: "constexpr" for name, _ in constants}
    made: Any = triton.compile(
        ASTSource(function, types, dict(constants), divisible),
        target=GPUTarget(backend, arch, warp),
        options=dict(options),
    )
    text = made.asm["ptx" if backend == "cuda" else "amdgcn"]
    if backend == "cuda":
        # without what is for debuggers
        text = re.split(r"^\s*\.(?:section\s+\.debug|file\s)", text, flags=re.M)[0]
        registers, spilled, local = _by_assembler(text, target, dict(options))
    else:
        found = {name: int(v) for name, v in re.findall(r"\.(\w+):\s+(\d+)\s", text)}
        registers, local = found["vgpr_count"], found["private_segment_fixed_size"]
        # scalar registers wait in lanes of vector registers
        spilled = 4 * found["vgpr_spill_count"]
    return Compiled(
        registers=registers,
        spilled=spilled,
        local=local,
        shared=made.metadata.shared,
        contracted=_contracted(text, made.asm["llir"], source, backend),
        flushed=len(_FLUSH.findall(text)),
        widened=_widened(made.asm["ttir"], kernel),
        narrow=len(_NARROW.findall(made.asm["ttir"])),
        assembly=text,
        source=source,
        kernel=kernel,
        binary=made.asm["cubin" if backend == "cuda" else "hsaco"],
    )


def _widened(text: str, kernel: Schedule) -> int:
    """Return the number of operations in float64 that a kernel in float32 does not ask for."""
    if kernel.dtype is not Dtype.FLOAT32:
        return 0
    wanted = 0
    for each in statements(without_dead_lines(kernel).body):
        wanted += isinstance(each, Operation) and each.result.dtype is Dtype.FLOAT64
        wanted += isinstance(each, Store) and each.buffer.role is Role.SUMS
    return len(_DOUBLE.findall(text)) - wanted


def _contracted(text: str, before: str, source: str, backend: str) -> int:
    """Return the number of fused multiplications and additions outside of functions.

    Args:
        text: in assembly language.
        before: the same before instructions were chosen, where functions call what they fuse.
        source: as printed.
        backend: of Triton.
    """
    may = len(_MAY_FUSE.findall(before))
    if backend == "cuda":
        called = sum(int(width or 1) for width in _FUSED_CALL.findall(before))
        return may + max(0, len(_FUSED.findall(text)) - called)
    # AMD's functions are of the same instructions, and attributed to the lines around them
    if "libdevice." in source.partition("@triton")[2]:
        return 0
    written, now = source.splitlines(), ""
    for line in text.splitlines():
        if place := re.match(r"\s*\.loc\s+\d+\s+(\d+)", line):
            now = written[int(place[1]) - 1] if int(place[1]) else now
        elif _FUSED_AMD.search(line):
            may += not _FUNCTION.search(now)
    return may


def _signature(kernel: Schedule, names: Sequence[str], large: bool) -> dict[str, str]:
    """Return types of a kernel's arguments, of which nothing else is known: as in a launch."""
    buffers = {f"at_{buffer.label}": buffer for buffer in kernel.buffers}
    return {
        name: _POINTERS[buffers[name].dtype] if name in buffers else "i64" if large else "i32"
        for name in names
    }


# NVIDIA's assembler and disassembler


@functools.cache
def _tools() -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _by_assembler(text: str, target: str, options: dict[str, Any]) -> tuple[int, int, int]:
    """Return registers, bytes that are spilled, and bytes of local memory."""
    arch = target + ("a" if int(target.removeprefix("sm_")) >= 90 else "")
    # as Triton calls it
    command = ["-v", "--regAllocOptLevel=2", f"--gpu-name={arch}"]
    command += [] if options["enable_fp_fusion"] else ["--fmad=false"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(text)
        file.flush()
        # the second one is of a later version, where Triton has it
        for tool in ("ptxas", "ptxas-blackwell"):
            done = subprocess.run(
                [_tools() / tool, *command, file.name, "-o", "/dev/null"],
                capture_output=True,
                text=True,
            )
            if done.returncode == 0:
                break
    if done.returncode != 0:
        raise RuntimeError(f"the assembler refuses a kernel for {target}: {done.stderr}")
    report = done.stderr
    local, stores, loads = _numbers(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
    )
    (registers,) = _numbers(r"Used (\d+) registers", report)
    return registers, stores + loads, local


def _numbers(pattern: str, text: str) -> list[int]:
    """Return the numbers of the only match of a pattern."""
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the assembler does not say {pattern!r}: {text}")
    return [int(number) for number in found.groups()]


def _loops(binary: bytes, depth: int) -> list[list[str]]:
    """Return the instructions of the loops at a depth, 1 being outermost, of a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        done = subprocess.run(
            [_tools() / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True
        )
    code: list[str] = []
    places: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for line in done.stdout.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            places[label[1]] = len(code)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+([^;]+?)\s*;", line):
            code.append(instruction[1])
            back = re.search(r"\bBRA\b.*(\.L_x_\d+)", instruction[1])
            # a branch to itself pads the end
            if back and places.get(back[1], len(code)) < len(code) - 1:
                spans.append((places[back[1]], len(code)))
    merged: dict[int, int] = {}  # the last branch to a label ends its loop
    for begin, end in spans:
        merged[begin] = max(end, merged.get(begin, 0))
    # the loop of a function between them lies deeper, or behind the kernel
    found = [
        (begin, end)
        for begin, end in sorted(merged.items())
        if sum(b <= begin and end <= e for b, e in merged.items()) == depth
    ]
    return [code[b:e] for b, e in found if any("LDG" in i or "STG" in i for i in code[b:e])]


# The typed loops


def _depth(body: Sequence[Statement]) -> int:
    """Return how many loops are in one another."""
    inner = [each.body for each in body if isinstance(each, (For, Lanes))]
    loops = [isinstance(each, For) for each in body if isinstance(each, (For, Lanes))]
    return max((_depth(b) + one for b, one in zip(inner, loops, strict=True)), default=0)


def _innermost(body: Sequence[Statement]) -> list[For]:
    found: list[For] = []
    for each in body:
        if isinstance(each, (For, Lanes)):
            inside = _innermost(each.body)
            found += inside or ([each] if isinstance(each, For) else [])
    return found


def _over_time(loops: Sequence[list[str]], kernel: Schedule) -> list[tuple[list[str], int]]:
    """Return which loops are those of a kernel, each with the number of steps it takes at once.

    One that takes several at once is followed by one for the steps that are left.
    """
    found: list[tuple[list[str], int]] = []
    left = list(loops)
    for typed in _innermost(kernel.body):
        if not left:
            break
        stored = sum(isinstance(each, Store) for each in typed.body)
        loaded = sum(isinstance(each, Load) for each in typed.body)
        kind, count = ("STG", stored) if stored else ("LDG", max(1, loaded))
        now = left.pop(0)
        steps = max(1, sum(kind in instruction for instruction in now) // count)
        found.append((now, steps))
        if steps > 1 and len(loops) > len(_innermost(kernel.body)):
            left = left[1:]
    return found
