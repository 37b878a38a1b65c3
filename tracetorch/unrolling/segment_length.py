"""Choose how many steps a segment has: ``segment="auto"``, or a memory bound, ``segment="512MB"``.

The first steps run as a part of their own, whose graph is kept, and what autograd saves of them is
counted. The rest is in proportion: a segment needs three times what its steps save, for backward
computes about as much again, and an allocator does not give all back; outputs, and gradients of
inputs, are held twice for all steps, in parts and joined; every segment keeps the states at its
start, and by step all nodes of the graph stay. Without a graph, what a step computes is estimated
by the sizes of states and outputs.
"""

from __future__ import annotations

import logging
import math
import re
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.checks import sharded_parts
from tracetorch.core.torch_private import BatchNormBase, pytree, unchanged, with_version
from tracetorch.core.walk import modules_of
from tracetorch.snn.batch_norm import StepwiseNorm
from tracetorch.snn.passes import Pass
from tracetorch.snn.recurrent import Recurrent
from tracetorch.unrolling.inputs import Inputs

MEASURED = 4  # steps; the comparison with a run by step takes three
_PER_ROOT = 4  # steps of a segment by the square root of all: a sixteenth of 16,384 needs 512
_NODE = 1500  # bytes of the nodes of a graph by step, for each tensor that they save
_LEAST = 8e6  # bytes of a segment, if there are as many: a shorter one takes longer than it saves
_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9}

_log = logging.getLogger("tracetorch")


def parse_bound(segment: str, model: nn.Module, by: str) -> float:
    """Return a memory bound in bytes, infinite for ``"auto"``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(KB|MB|GB)", segment)
    if match is None and segment != "auto":
        raise ValueError(
            'segment must be a number of steps, "auto" or a memory bound in KB, MB or GB such as '
            f'"512MB", got {segment!r}.'
        )
    for part in sharded_parts(model):
        raise ValueError(
            f"{part} sharded, and gathered for every segment: all processes need as many segments, "
            f"and segment={segment!r} chooses in each. Give the number of steps."
        )
    for path, module in modules_of(model, closed=Recurrent) if by == "layer" else ():
        is_norm = isinstance(module, BatchNormBase) and not isinstance(module, StepwiseNorm)
        if is_norm and module.training:
            raise ValueError(
                f"{path or 'the model'} ({type(module).__name__}), in training, takes its "
                f"statistics over a segment, and segment={segment!r} chooses that by memory. Give "
                'the number of steps, segment=50 say, or use by="step".'
            )
    return math.inf if match is None else float(match[1]) * _UNITS[match[2]]


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Count the bytes that autograd saves beside ``known`` tensors; by step its nodes too."""

    def __init__(self, known: Iterable[Tensor], by: str) -> None:
        super().__init__(self._pack, unchanged)
        self.seen = {_address(x) for x in known}
        self.node = _NODE if by == "step" else 0
        self.total = self.nodes = 0

    def _pack(self, x: Tensor) -> tuple[Tensor, int]:
        self.nodes += self.node
        if _address(x) not in self.seen:
            self.seen.add(_address(x))
            plain = x.layout is torch.strided
            self.total += x.untyped_storage().nbytes() if plain else x.nbytes
        return with_version(x)


def _address(x: Tensor) -> int:
    return x.untyped_storage()._cdata if x.layout is torch.strided else id(x)


def fitting_length(
    segment: str, bound: float, inputs: Inputs, saved: SavedBytes, results: Any, whole: Pass
) -> int:
    """Return the number of steps of a segment, by what the first steps saved, gave and left."""
    steps, given = min(MEASURED, inputs.steps), pytree.tree_leaves(inputs.tensors)
    all_states = (entry.states.values() for entry in whole.entries.values())
    states = sum(s.nbytes for each in all_states for s in each if isinstance(s, Tensor))
    outputs = _bytes(pytree.tree_leaves(results))
    kept, ends = (saved.total + saved.nodes) / steps, (outputs + saved.nodes / 2) / steps
    if torch.is_grad_enabled() and not inputs.static:
        ends += _bytes([x for x in given if x.requires_grad]) / inputs.steps
    if not kept:  # there is no graph
        kept, states = states + ends, 0
    free = free_bytes(given[0].device)
    return choose_length(segment, bound, inputs.steps, kept, ends, states, free)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)


def choose_length(
    segment: str, bound: float, steps: int, kept: float, ends: float, states: float, free: float
) -> int:
    """Return the number of steps of a segment: within a bound as many as fit.

    For ``"auto"`` that is four times the square root of ``steps``, or more, as long as they keep
    8 MB; or, where those need more than half of the free memory, as many as fit there. ``kept`` and
    ``ends`` are bytes of a step: of its graph; of outputs, and of inputs that want gradients.
    """

    def needed(length: int) -> float:
        return (3 * length + MEASURED) * kept + 2 * steps * ends + steps / length * states

    # from here on `needed` grows
    least = min(steps, max(1, math.ceil(math.sqrt(steps * states / (3 * kept or 1)))))
    auto = math.isinf(bound)
    fitting = bisect_right(range(least, steps + 1), free / 2 if auto else bound, key=needed)
    if not (fitting or auto):
        raise ValueError(
            f"segment={segment!r} is less than the {needed(least) / 1e6:.3g} MB that these {steps} "
            f"steps need in segments of {least}. Give more memory, or a smaller batch."
        )
    length = least + max(0, fitting - 1)
    if auto:
        wanted = max(_PER_ROOT * math.sqrt(steps), _LEAST / kept if kept else steps)
        length = min(length, max(least, math.ceil(wanted)))
    _log.info(
        "tt.unroll: %d steps in segments of %d, about %.3g MB.", steps, length, needed(length) / 1e6
    )
    return length


def free_bytes(device: torch.device, root: Path = Path("/")) -> float:
    """Return how much memory is free on a device; infinite where the system does not say.

    On a CPU what Linux says below ``root``, and what the limit of a container leaves.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return math.inf
    found = [1024 * _field(root / "proc/meminfo", "MemAvailable:")]
    for folder, limit, usage, cache in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        at = root / "sys/fs/cgroup" / folder
        # files that are cached make room
        used = _field(at / usage) - min(_field(at / usage), _field(at / "memory.stat", cache, 0))
        found.append(_field(at / limit) - used if math.isfinite(used) else math.inf)
    return max(0.0, min(found))


def _field(path: Path, name: str = "", missing: float = math.inf) -> float:
    """Return the number behind a name in a file of the system, or that of the whole file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return missing
    values = [line.removeprefix(name).split()[0] for line in lines if line.startswith(name)]
    return float(values[0]) if values and values[0].isdigit() else missing
