"""Compile networks that ``tt.export.c`` wrote, and step them."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tracetorch.export import CReport

COMPILERS = [
    pytest.param(name, marks=pytest.mark.skipif(shutil.which(name) is None, reason="needs " + name))
    for name in ("gcc", "clang")
]
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
CORTEX_M4 = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
needs_cortex = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None or shutil.which("qemu-arm") is None,
    reason="needs apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-user",
)
_AT_ONCE = 10_000  # steps that one eager step on a batch checks
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-ffp-contract=off")
_RUN = """\
#include <stddef.h>
#include <string.h>
#include "model.h"

const int64_t tt_stream_bytes = sizeof(tt_stream);
const int64_t tt_offsets[] = {{{offsets}}};
void run(tt_stream *s, int64_t steps, const {x} *x, {y} *y, unsigned char *seen);
void run(tt_stream *s, int64_t steps, const {x} *x, {y} *y, unsigned char *seen) {{
    for (int64_t t = 0; t < steps; t++) {{
        tt_step(s, x + t * TT_X_SIZE, y + t * TT_Y_SIZE);
        if (seen) {{
            memcpy(seen + t * tt_stream_bytes, s, sizeof(tt_stream));
        }}
    }}
}}
"""
_STATE = re.compile(r"^    (\w+) (state_\w+)\[(\d+)\]; /\* (.*) \*/$", re.MULTILINE)
NUMPY = {"float": np.float32, "bool": np.bool_} | {
    f"int{bits}_t": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)
}


def checked(command: list[str], folder: Path) -> str:
    """Run a command in a folder; what it prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def run_on_cortex(folder: Path, main: str) -> tuple[str, int]:
    """Run ``main`` with ``model.c`` on an emulated Cortex-M4; what it prints, and the stack."""
    flags = [*STRICT, *CORTEX_M4, "-O2", "-fstack-usage", "--specs=rdimon.specs"]
    checked(["arm-none-eabi-gcc", *flags, main, "model.c", "-o", "main.elf", "-lm"], folder)
    printed = checked(["qemu-arm", "-cpu", "cortex-m4", "main.elf"], folder)
    (path,) = [path for path in folder.glob("*.su") if "model" in path.name]
    return printed, sum(int(line.split("\t")[1]) for line in path.read_text().splitlines())


class CNetwork:
    """A network as a shared library: one input and one output, one stream.

    It is of a model and a recorded input, or of the report of files that are in the folder already.
    """

    def __init__(
        self,
        model: nn.Module,
        sample: Tensor,
        folder: Path,
        *,
        compiler: str = "cc",
        flags: tuple[str, ...] = ("-O0",),
        report: CReport | None = None,
        **arguments: Any,
    ) -> None:
        self.report = report or tt.export.c(model, folder, sample, **arguments)
        types = self.report.types
        text = (folder / "model.h").read_text()
        fields = _STATE.findall(text)
        offsets = ", ".join(f"offsetof(tt_stream, {field})" for _, field, _, _ in fields)
        run = _RUN.format(x=types["x"], y=types["y"], offsets=offsets or "0")
        (folder / "run.c").write_text(run)
        command = [compiler, *STRICT, *flags, "-shared", "-fPIC", "run.c", "model.c", "-lm"]
        checked([*command, "-o", "run.so"], folder)
        self.library: Any = ctypes.CDLL(str(folder / "run.so"))
        self.bytes = ctypes.c_int64.in_dll(self.library, "tt_stream_bytes").value
        # poisoned: tt_init must write whatever is read
        self.stream = np.full(self.bytes, 0xA5, np.uint8)
        self.kinds = NUMPY[types["x"]], NUMPY[types["y"]]
        self.size = int(text.partition("#define TT_Y_SIZE ")[2].split()[0])
        self.library.tt_init(_pointer(self.stream))
        places = (ctypes.c_int64 * len(fields)).in_dll(self.library, "tt_offsets")
        self.states = np.dtype(
            {
                "names": [label for _, _, _, label in fields],
                "formats": [(NUMPY[kind], (int(size),)) for kind, _, size, _ in fields],
                "offsets": list(places),
                "itemsize": self.bytes,
            }
        )

    def reset(self) -> None:
        self.library.tt_reset(_pointer(self.stream))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs ``[T, size]`` of a sequence."""
        return self._run(x, None)

    def recorded(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outputs ``[T, size]``, and each state ``[T, size]`` after every step."""
        seen = np.zeros(len(x), self.states)
        y = self._run(x, seen)
        return y, {name: torch.from_numpy(seen[name].copy()) for name in self.states.names or ()}

    def _run(self, x: Tensor, seen: Any) -> Tensor:
        given = np.ascontiguousarray(x.flatten(1).numpy().astype(self.kinds[0]))
        got = np.zeros((len(given), self.size), self.kinds[1])
        self.library.run(
            _pointer(self.stream),
            ctypes.c_int64(len(given)),
            _pointer(given),
            _pointer(got),
            None if seen is None else _pointer(seen),
        )
        return torch.from_numpy(got.astype(np.float64 if got.dtype.kind == "i" else got.dtype))


def _pointer(memory: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(memory.ctypes.data)


@torch.no_grad()
def stepped(model: nn.Module, x: Tensor) -> Tensor:
    """Return what the eager steps of a model compute from rest, ``[T, size]``."""
    tt.zero_states(model)
    with tt.fuse.backend("eager"):
        return torch.stack([model(step).flatten() for step in x.unbind(0)])


@torch.no_grad()
def check_every_step(net: CNetwork, model: nn.Module, x: Tensor, first: int) -> Tensor:
    """Check that each step in C is the eager step bit by bit; return which outputs were not zero.

    A proof by induction. The first steps are compared with eager steps one after the other, from
    rest. Of all later ones, one eager step on a batch takes every state that the C went through,
    with the input of that time, and must return the output and the states that the C had next.
    A step is the same on each row of a batch, so eager steps in a row would go the same way.

    Args:
        net: at rest, of which every state is one row per stream.
        model: what it was written from.
        x: inputs ``[T, 1, ...]``.
        first: number of steps that are eager one after the other; 1 at least.
    """
    spoke = torch.zeros(net.size, dtype=torch.bool)
    before: dict[str, Tensor] = {}
    for start in range(0, len(x), _AT_ONCE):
        given = x[start : start + _AT_ONCE]
        got, after = net.recorded(given)
        spoke |= (got != 0).any(0)
        if not start:
            assert torch.equal(got[:first], stepped(model, given[:first]).to(got.dtype))
            found = tt.get_states(model)
            assert found.keys() == after.keys()
            for name, state in found.items():
                assert torch.equal(after[name][first - 1], state.flatten().to(after[name])), name
            kinds = {name: state.dtype for name, state in found.items()}
            before = {name: state[first - 1 : first] for name, state in after.items()}
            got, given = got[first:], given[first:]
            after = {name: state[first:] for name, state in after.items()}
        begins = {name: torch.cat([before[name], after[name][:-1]]) for name in after}
        tt.set_states(model, {name: state.to(kinds[name]) for name, state in begins.items()})
        with tt.fuse.backend("eager"):
            expected = model(given.squeeze(1))
        assert torch.equal(got, expected.to(got.dtype)), start
        for name, state in tt.get_states(model).items():
            assert torch.equal(after[name].to(kinds[name]), state), (name, start)
        before = {name: state[-1:] for name, state in after.items()}
    tt.zero_states(model)
    return spoke
