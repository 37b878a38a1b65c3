"""Compile networks that ``tt.export.c`` wrote, and step them."""

from __future__ import annotations

import ctypes
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
    pytest.param(
        name,
        marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"needs {name}: apt-get"),
    )
    for name in ("gcc", "clang")
]
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-ffp-contract=off")
_RUN = """\
#include "model.h"

const int64_t tt_stream_bytes = sizeof(tt_stream);
void run(tt_stream *s, int64_t steps, const {x} *x, {y} *y);
void run(tt_stream *s, int64_t steps, const {x} *x, {y} *y) {{
    for (int64_t t = 0; t < steps; t++) {{
        tt_step(s, x + t * TT_X_SIZE, y + t * TT_Y_SIZE);
    }}
}}
"""
NUMPY = {"float": np.float32, "bool": np.bool_} | {
    f"int{bits}_t": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)
}


def checked(command: list[str], folder: Path) -> str:
    """Run a command in a folder; what it prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


class CNetwork:
    """A network as a shared library: one input and one output, one stream.

    Args:
        model: it.
        sample: a recorded input.
        folder: where its files go.
        compiler, flags: with which it is compiled.
        report: of the files, where they are there already.
        arguments: of ``tt.export.c``.
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
        (folder / "run.c").write_text(_RUN.format(x=types["x"], y=types["y"]))
        command = [compiler, *STRICT, *flags, "-shared", "-fPIC", "run.c", "model.c", "-lm"]
        checked([*command, "-o", "run.so"], folder)
        self.library: Any = ctypes.CDLL(str(folder / "run.so"))
        self.bytes = ctypes.c_int64.in_dll(self.library, "tt_stream_bytes").value
        # poisoned: tt_init must write whatever is read
        self.stream = np.full(self.bytes, 0xA5, np.uint8)
        self.kinds = NUMPY[types["x"]], NUMPY[types["y"]]
        text = (folder / "model.h").read_text()
        self.size = int(text.partition("#define TT_Y_SIZE ")[2].split()[0])
        self.library.tt_init(_pointer(self.stream))

    def reset(self) -> None:
        self.library.tt_reset(_pointer(self.stream))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs ``[T, size]`` of a sequence."""
        given = np.ascontiguousarray(x.flatten(1).numpy().astype(self.kinds[0]))
        got = np.zeros((len(given), self.size), self.kinds[1])
        self.library.run(
            _pointer(self.stream), ctypes.c_int64(len(given)), _pointer(given), _pointer(got)
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
