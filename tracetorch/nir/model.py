"""Run a NIR graph as a model: ``NIRModel``."""

from __future__ import annotations

import keyword
from collections import Counter
from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from tracetorch.nir.modules import OneStep
from tracetorch.nir.options import Clock
from tracetorch.nir.wiring import Value, Wiring
from tracetorch.snn import TTModule


class NIRModel(TTModule):
    """Run one time step of a graph per call.

    Every node is a module in ``nodes``, under its name with ``.`` turned into ``_``. A node adds up
    what its edges bring, over those that are late what was there in the step before.

    Shape:
        Inputs ``[B, ...]``, by name or in the order of the ``forward`` that was exported, where the
        graph tells it, else of their names. One output ``[B, ...]``, or a dict of them by name.
    """

    def __init__(self, flow: Wiring, modules: dict[str, nn.Module], clock: Clock) -> None:
        super().__init__()
        self.flow = flow
        self.clock = clock
        self.keys = _module_names(modules)
        self.nodes = nn.ModuleDict({self.keys[name]: m for name, m in modules.items()})
        shapes = {name: flow.shapes[name] for name in flow.kept}
        self.late = nn.ModuleDict(
            {self.keys[name]: OneStep(shape[0], -len(shape)) for name, shape in shapes.items()}
        )

    def forward(self, *positional: Tensor, **by_name: Tensor) -> Tensor | dict[str, Tensor]:
        """Run one time step."""
        flow, inputs = self.flow, self._inputs(positional, by_name)
        values: dict[Value, Tensor] = {(name, False): value for name, value in inputs.items()}
        some = next(iter(inputs.values()))
        kept = {name: cast(OneStep, self.late[self.keys[name]]) for name in flow.kept}
        for name, edge in kept.items():
            values[name, True] = edge.recall(some.new_zeros(some.shape[0], *flow.shapes[name]))
        for value, sources in flow.plan:
            total, *others = (values[source] for source in sources)
            for other in others:
                total = total + other
            values[value] = self.nodes[self.keys[value[0]]](total)
        for name, edge in kept.items():
            edge.keep(values[name, False])
        outputs = {name: values[name, False] for name in flow.outputs}
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def _inputs(self, args: tuple[Tensor, ...], by_name: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = dict(zip(self.flow.inputs, args, strict=False)) | by_name
        once = len(args) + len(by_name) == len(inputs) == len(self.flow.inputs)
        if not once or inputs.keys() != set(self.flow.inputs):
            got = f"{len(args)} tensors and {list(by_name)} by name"
            raise TypeError(f"the graph takes {self.flow.inputs}, each once; got {got}.")
        for name, value in inputs.items():
            shape = self.flow.shapes[name]
            if tuple(value.shape[1:]) != shape:
                expected = f"a batch of {list(shape)}: [B, {', '.join(map(str, shape))}]"
                got = f"input {name!r} has shape {list(value.shape)}"
                raise ValueError(f"{got}, the graph takes {expected}.")
        return inputs


def _module_names(names: Iterable[str]) -> dict[str, str]:
    """Return a name that a module may have for each name in a file, which may be anything."""
    keys: dict[str, str] = {}  # the other way round: names by key
    reserved = nn.ModuleDict()
    # A file may hold any number of names that become one: count instead of trying all suffixes.
    tried: Counter[str] = Counter()
    for name in names:
        key = base = "".join(c if c.isalnum() else "_" for c in name)
        if keyword.iskeyword(key) or hasattr(reserved, key):
            key = base = f"{key}_"
        while key in keys:
            tried[base] += 1
            key = f"{base}_{tried[base]}"
        keys[key] = name
    return {name: key for key, name in keys.items()}
