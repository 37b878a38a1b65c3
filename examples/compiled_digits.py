"""Integers as a program in C that reads spikes digit by digit, and writes what each step gives."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import tracetorch as tt

PROGRAM = """\
#include <stdio.h>

#include "model.h"

int main(void) {
    static tt_stream stream;
    int8_t x[TT_X_SIZE];
    OUTPUT y[TT_Y_SIZE];
    tt_init(&stream);
    for (long t = 1; fread(x, 1, sizeof x, stdin) == sizeof x; t++) {
        tt_step(&stream, x, y);
        fwrite(y, 1, sizeof y, stdout);
        if (t % STEPS == 0) {
            tt_reset(&stream); /* the next step is the first of the next digit */
        }
    }
    return 0;
}
"""


def outputs_of_c(model: nn.Module, x: Tensor, folder: Path, bits: int) -> Tensor:
    """Return the outputs ``[T, N, ...]`` of a model as a program in C, each sample from rest.

    Args:
        model: the integers.
        x: spikes ``[T, N, ...]``.
        folder: for the sources and the program.
        bits: of an output, 8 or 16.
    """
    tt.export.c(model, folder, x, dtype="int")
    (folder / "digits.c").write_text(PROGRAM)
    strict = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror")
    names = (f"-DSTEPS={len(x)}", f"-DOUTPUT=int{bits}_t")
    command = ["cc", *strict, *names, "digits.c", "model.c", "-o", "digits"]
    subprocess.run(command, cwd=folder, check=True)
    given = x.transpose(0, 1).contiguous().numpy().astype(np.int8)  # digit by digit
    program = [(folder / "digits").absolute()]
    done = subprocess.run(program, input=given.tobytes(), capture_output=True, check=True)
    y = np.frombuffer(done.stdout, f"int{bits}").astype(np.float32)
    return torch.from_numpy(y).view(x.shape[1], len(x), -1).transpose(0, 1)
