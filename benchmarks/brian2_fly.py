"""Run the fly's network in Brian2: ``python -m benchmarks.brian2_fly FILE``, by its C++ standalone.

``FILE`` holds the arrays that :func:`network` takes. A line of JSON is printed: spikes, the seconds
of the run, and those that C++ took to be written and compiled. Brian2 stands in an environment of
its own (``make bench-peers``), which needs nothing else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

# solved exactly; the flag also keeps what arrives from a variable of a refractory neuron
EQUATIONS = """
dv/dt = (g - v - 52*mV) / (20*ms) : volt (unless refractory)
dg/dt = -g / (5*ms) : volt (unless refractory)
"""


def network(
    neurons: int, edges: np.ndarray, weight: np.ndarray, events: np.ndarray, kick: float
) -> dict[str, Any]:
    """Build the model of the paper; its parts by name.

    Args:
        neurons: how many there are.
        edges: sources and targets ``[2, E]``.
        weight: of each edge, in mV.
        events: of the input ``[n, 2]``, step and neuron.
        kick: weight of an event, in mV.
    """
    import brian2 as b2

    b2.defaultclock.dt = 0.1 * b2.ms
    group = b2.NeuronGroup(
        neurons,
        EQUATIONS,
        method="exact",
        threshold="v > -45*mV",
        reset="v = -52*mV; g = 0*mV",
        refractory=2.2 * b2.ms,
    )
    group.v = -52 * b2.mV
    synapses = b2.Synapses(group, group, "w : volt", on_pre="g += w", delay=1.8 * b2.ms)
    synapses.connect(i=edges[0], j=edges[1])
    synapses.w = weight * b2.mV
    driven, place = np.unique(events[:, 1], return_inverse=True)
    times = events[:, 0] * b2.defaultclock.dt
    source = b2.SpikeGeneratorGroup(len(driven), place.ravel(), times)
    inputs = b2.Synapses(source, group, on_pre=f"g += {kick!r}*mV")
    inputs.connect(i=np.arange(len(driven)), j=driven)
    monitor = b2.SpikeMonitor(group)
    parts = {"group": group, "synapses": synapses, "source": source, "inputs": inputs}
    parts["spikes"] = monitor
    return parts | {"network": b2.Network(*parts.values())}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="an .npz of the arrays, and of the number of steps")
    parser.add_argument("--threads", type=int, default=1, help="of OpenMP (%(default)s)")
    options = parser.parse_args(arguments)
    import brian2 as b2

    with tempfile.TemporaryDirectory() as folder:
        b2.set_device("cpp_standalone", directory=folder, build_on_run=False)
        # 0 is C++ without OpenMP
        b2.prefs.devices.cpp_standalone.openmp_threads = (
            options.threads if options.threads > 1 else 0
        )
        start = time.perf_counter()
        with np.load(options.file) as file:
            arrays = dict(file)
        steps = int(arrays.pop("steps"))
        neurons, kick = int(arrays.pop("neurons")), float(arrays.pop("kick"))
        parts = network(neurons, **arrays, kick=kick)
        parts["network"].run(steps * b2.defaultclock.dt)
        b2.device.build(directory=folder, run=False)
        built = time.perf_counter() - start
        b2.device.run(folder, with_output=False)
        found = {"spikes": int(parts["spikes"].num_spikes), "built": built}
        # of the loop over time alone: not of reading the synapses
        found["seconds"] = float(b2.device._last_run_time)
    print(json.dumps(found | {"version": b2.__version__}))


if __name__ == "__main__":
    main()
