"""Measure the jitter of a control loop at 1 kHz: in Python, and the same network in C.

``python -m benchmarks.loop_jitter`` takes about five minutes: 100,000 steps in each of three loops.
A step is due at a fixed time; what counts for the robot is how long after it the answer is there.
``--load`` keeps as many processes busy as there are cores, beside each loop.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import tracetorch as tt
from benchmarks.fixed_cost import microseconds
from benchmarks.machine import machine
from tracetorch import snn

COUNTS = (2, 5, 20, 100)  # of samples that wait
ROUNDS = 300  # of a call that answers them
SPIN = 0.0002  # seconds before a deadline in which a loop waits awake
# How a loop in C waits: asleep until an absolute time. It answers the recorded input in turn.
LOOP = """\
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "model.h"
#include "sample.h"

static tt_stream stream;

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int count, char **arguments) {
    int steps = count > 1 ? atoi(arguments[1]) : 1000;
    double period = count > 2 ? atof(arguments[2]) : 0.001;
    double *found = malloc(2 * sizeof(double) * (size_t)steps);
    float answer[TT_Y_SIZE];
    if (!found) return 1;
    tt_init(&stream);
    double begin = seconds();
    for (int i = 0; i < steps; i++) {
        double due = begin + (i + 1) * period;
        struct timespec until = {(time_t)due, (long)(1e9 * (due - (double)(time_t)due))};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL)) {}
        found[2 * i] = seconds() - due;
        tt_step(&stream, tt_sample_x[i % TT_SAMPLE_STEPS], answer);
        found[2 * i + 1] = seconds() - due;
    }
    for (int i = 0; i < steps; i++) printf("%.9f %.9f\\n", found[2 * i], found[2 * i + 1]);
    return 0;
}
"""


def network() -> nn.Sequential:
    """Return a controller: two layers of 64 neurons, the first recurrent."""
    return nn.Sequential(
        nn.Linear(4, 64),
        snn.Recurrent(snn.LIF(64), nn.Linear(64, 64)),
        nn.Linear(64, 64),
        snn.LIF(64),
        nn.Linear(64, 2),
        snn.Readout(2),
    )


Times = list[tuple[float, float]]  # of each step, after it was due: it began, it had answered


@torch.no_grad()
def loop(net: nn.Module, samples: Tensor, steps: int, period: float, spin: float = 0.0) -> Times:
    """Answer a sample in every period; return when each step began and ended, after it was due.

    Args:
        net: the controller, compiled by a call.
        samples: ``[T, 1, N]``, answered in turn.
        steps: to run.
        period: seconds.
        spin: seconds before a deadline in which the loop does not sleep.
    """
    found, clock, rows = [], time.perf_counter, samples.unbind()
    begin = clock()
    for i in range(steps):
        due = begin + (i + 1) * period
        if (rest := due - clock() - spin) > 0:
            time.sleep(rest)
        while clock() < due:
            pass
        start = clock() - due
        net(rows[i % len(rows)])
        found.append((start, clock() - due))
    return found


def prepared(net: nn.Module, samples: Tensor, steps: int, period: float) -> Times:
    """Run the loop without the collector of garbage, awake before each deadline."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        return loop(net, samples, steps, period, SPIN)
    finally:
        gc.enable()
        gc.unfreeze()


def in_c(net: nn.Module, samples: Tensor, steps: int, period: float) -> Times:
    """Compile the network as C with a loop around it; run it."""
    with tempfile.TemporaryDirectory() as folder:
        tt.export.c(net, folder, samples)
        (Path(folder) / "loop.c").write_text(LOOP)
        options = ("-std=c99", "-O2", "-ffp-contract=off")
        build = ["cc", *options, "loop.c", "model.c", "-o", "loop", "-lm"]
        subprocess.run(build, cwd=folder, check=True)
        command = [f"{folder}/loop", str(steps), str(period)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [(float(a), float(b)) for a, b in map(str.split, lines.splitlines())]


LOOPS: dict[str, Callable[[nn.Module, Tensor, int, float], Times]] = {
    "Python, as it is": loop,
    "Python, no collector, awake before the deadline": prepared,
    "C": in_c,
}


def summary(found: Times, period: float) -> list[str]:
    """Return the cells of a row: percentiles of both times in microseconds, and late steps."""
    begun, ended = np.array(found).T
    cells = []
    for each in (begun, ended):
        cells += [f"{1e6 * value:.0f}" for value in (*np.quantile(each, (0.5, 0.999)), each.max())]
    return [*cells, str(int((ended > period).sum()))]


@contextmanager
def _load(processes: int) -> Iterator[None]:
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table.

    Args:
        arguments: of the command line; those of the process where ``None``.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop_jitter", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="of each loop (100000)")
    parser.add_argument("--period", type=float, default=0.001, help="seconds (0.001)")
    parser.add_argument("--load", action="store_true", help="with a busy process on each core")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the fastest for one sample at a time
    net, samples = network(), torch.randn(100, 1, 4)
    with torch.no_grad():
        for sample in samples:  # compiles
            net(sample)
    here = machine()
    beside = ", all cores busy beside it" * options.load
    print(f"{here['processor']}, {here['cores']} cores, {here['date']}{beside}")
    print(f"{options.steps} steps of {1e3 * options.period:g} ms; us after a step was due")
    print("| loop | begun: median | 99.9 % | worst | answered: median | 99.9 % | worst | late |")
    print("|---|---|---|---|---|---|---|---|")
    with _load(int(here["cores"]) if options.load else 0):
        for name, run in LOOPS.items():
            if run is in_c and shutil.which("cc") is None:
                print("no row for C: there is no compiler")
                continue
            cells = summary(run(net, samples, options.steps, options.period), options.period)
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    with torch.no_grad():
        print("\n| samples that wait | a step for each, us | one `tt.unroll`, us |\n|---|---|---|")
        for count in COUNTS:
            some = samples[:count]
            by_step = microseconds(partial(_by_step, net, some), ROUNDS)
            at_once = microseconds(partial(tt.unroll, net, some), ROUNDS)
            print(f"| {count} | {by_step:.0f} | {at_once:.0f} |")
    return 0


def _by_step(net: nn.Module, samples: Tensor) -> None:
    for sample in samples.unbind():
        net(sample)


if __name__ == "__main__":
    sys.exit(main())
