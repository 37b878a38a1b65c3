"""Describe neurons for the playground page: parameters, choices, and the Python that makes them.

The playground has no equation of its own: every pass over time in it is printed from a traced step
(``tracetorch/fuse/codegen/javascript_loops.py``), once for each value of the choices that change
the step (reset, surrogate), since the policy of the page forbids ``eval``. Passes of one text are
written once. The Python line that makes a neuron uses an argument of the constructor where the
layer has declared it as it is; other parameters and options are assigned. All inputs are in a
unit, the first power of ten of which half a pulse makes the neuron
fire: millivolts for one, thresholds for another.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import torch
from torch import Tensor, nn

from tracetorch import fuse, neurons, snn
from tracetorch.cell import Cell
from tracetorch.functional import decay_to_halflife
from tracetorch.functional.surrogates import SURROGATES, Surrogate
from tracetorch.fuse.codegen.javascript_functions import functions_source
from tracetorch.fuse.codegen.javascript_loops import backward_source, forward_source, unknown
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir.graph import Graph, Unfusable
from tracetorch.fuse.ir.plan import Plan
from tracetorch.plot.firing_lines import FiringLine, firing_lines, is_parameter, spike_alone
from tracetorch.plot.playground_story import (
    PRESETS,
    RUNS,
    STARTS,
    STEPS,
    STIMULI,
    TRIES,
    Stimulus,
)
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import (
    fraction,
    is_decay,
    negative_softplus,
    softplus,
)
from tracetorch.snn.spike_functions import spike_functions

# What the page takes a parameter for, by its constraint; decays are found by is_decay.
KINDS = {
    fraction: "fraction",
    softplus: "positive",
    negative_softplus: "negative",
}
UNITS = (1.0, 10.0, 100.0, 1000.0)
"""Of an input: what the page multiplies all it is given by."""
# the statement of a docstring that resets the membrane, behind the one that spikes
_RESET = re.compile(r"^(.*?); +mem = mem ([-+]) (\w+) \* (\w+_threshold)$", re.MULTILINE)
_PULSE = 25  # steps, as the page begins
VALUES: dict[str, tuple[Any, ...]] = {
    "reset": ("subtract", "zero", "none"),
    "detach_reset": (False, True),
}
# The twelve layers, by the letters that switch their parts on.
FAMILY = (
    *(snn.LIF, snn.BLIF, snn.SLIF, snn.RLIF, snn.BSLIF, snn.BRLIF, snn.SRLIF, snn.BSRLIF),
    *(snn.Readout, snn.SReadout, snn.RReadout, snn.SRReadout),
)
GROUPS = ("the twelve layers, tt.snn", "of the literature, tt.neurons", "others")


@dataclass
class Sources:
    """Collect printed loops, each once, and the graphs whose functions they need.

    Args:
        loops: the place of each source in the page's list.
        graphs: those that were printed.

    """

    loops: dict[str, int] = field(default_factory=dict)
    graphs: list[Graph] = field(default_factory=list)

    def add(self, plan: Plan) -> list[int]:
        """Return the places of the forward and the backward pass of a plan."""
        self.graphs.append(plan.backward)
        return [self.add_forward(plan), self._place(backward_source(plan))]

    def add_forward(self, plan: Plan) -> int:
        """Return the place of the forward pass of a plan."""
        self.graphs.append(plan.program.forward)
        return self._place(forward_source(plan))

    def _place(self, source: str) -> int:
        # without indentation: a page has many, and nobody reads them
        text = "\n".join(line.strip() for line in source.splitlines())
        return self.loops.setdefault(text, len(self.loops))

    def script(self) -> str:
        """Return the script that defines ``loops``, the list of all sources."""
        functions, sources = functions_source(self.graphs), ",\n".join(self.loops)
        return f'const loops = (() => {{\n"use strict";{functions}return [\n{sources}\n];\n}})();'


@dataclass(frozen=True)
class Choice:
    """An option that the page can change: its values, as they are shown, passed and written.

    Args:
        name: of the choice.
        labels: what the page shows, one for each value.
        overrides: step kwargs of each value.
        keywords: the arguments of the constructor, as text, that give each value.
        lines: assignments, as text, for what the constructor does not take.
        index: of the value that the layer has.

    """

    name: str
    labels: Sequence[str]
    overrides: Sequence[Mapping[str, Any]]
    keywords: Sequence[Mapping[str, str]]
    lines: Sequence[Sequence[str]]
    index: int


def check_finite(where: str, layer: nn.Module) -> None:
    """Raise ``ValueError`` for a parameter or an option of a layer that is not finite.

    Args:
        where: which layer, as a message begins.
        layer: the layer.
    """
    for name, each in (*layer.named_parameters(), *layer.named_buffers()):
        if not each.isfinite().all():
            raise ValueError(
                f"{where} has values in {name} that are not finite. Load weights from before, or "
                "replace them."
            )


def describe_neuron(
    caller: str, label: str, layer: Neuron, neuron: int, sources: Sources
) -> dict[str, Any]:
    """Return what the page must know of a layer; its printed loops go into ``sources``.

    Args:
        caller: name of the public function, for messages.
        label: name of the layer on the page.
        layer: the layer.
        neuron: whose parameters the sliders begin with.
        sources: of all layers of the page.

    Raises:
        ValueError: the step cannot be compiled, with the reason; there is no such neuron.
    """
    if not 0 <= neuron < layer.num_neurons:
        raise ValueError(
            f"{caller}: neuron must be from 0 to {layer.num_neurons - 1} for {layer!r}, "
            f"got {neuron}."
        )
    check_finite(f"{caller}: {layer!r}", layer)
    options = _changeable(layer)
    cell = layer.cell
    choices = [_choice(cell, name, names) for name, names in options.items()]
    start = {name: _start(layer, name, neuron) for name in layer.active_states}
    lines: list[FiringLine] | None = None
    thresholds: list[str | None] = []
    moving: dict[Any, list[Any]] = {}
    spikes: list[str] = []
    variants: list[list[Any]] = []

    def loop(made: Cell, kwargs: dict[str, Any]) -> list[Any]:
        return _loop(page_plan(made, _ndim(layer), kwargs), sources)

    for overrides in itertools.product(*(choice.overrides for choice in choices)):
        merged = {name: value for each in overrides for name, value in each.items()}
        kwargs = _kwargs(layer, merged)
        try:
            plan = page_plan(cell, _ndim(layer), kwargs)
        except Unfusable as reason:
            raise ValueError(f"{caller}: {layer!r} cannot be compiled: {reason}.") from None
        if lines is None:
            spikes = spike_functions(layer)
            lines = firing_lines(cell, spikes, start, kwargs)
            thresholds = [is_parameter(line, cell, start, kwargs) for line in lines]
        # forward, all surrogates do the same
        key = tuple(item for item in merged.items() if not isinstance(item[1], Surrogate))
        if key not in moving:
            moving[key] = [
                [
                    None if name else loop(line.cell(cell), kwargs)
                    for line, name in zip(lines, thresholds, strict=True)
                ],
                loop(lines[0].before(cell), kwargs) if lines else None,
            ]
        bump = _bump(cell, spikes, kwargs, sources) if lines else None
        variants.append([*sources.add(plan), described_literals(plan), *moving[key], bump])
    changeable = {name for names in options.values() for name in names}
    spiking = is_spiking(layer)
    unit = _unit(layer, neuron) if spiking else UNITS[0]
    silent = isinstance(layer, LeakyIntegrator) and not _thresholds(layer)
    hidden = {"prev_output", "mem" if silent else ""} if isinstance(layer, LeakyIntegrator) else ()
    return {
        "label": label,
        "letters": _letters(layer),
        "about": _about(layer),
        "states": list(layer.active_states),
        "start": list(start.values()),
        "shown": [name for name in layer.active_states if name not in hidden],
        "output": "output = mem" if silent else "output",
        "spiking": spiking,
        "lines": [
            {
                "state": cell.states[line.place],
                "sign": line.sign,
                "param": name and plan.program.params.index(name),
            }
            for line, name in zip(lines or (), thresholds, strict=True)
        ],
        "unit": unit,
        **_story(layer, unit),
        "params": [_parameter(layer, name, neuron) for name in plan.program.params],
        "options": _fixed_options(layer, {*changeable, *plan.program.params}),
        "choices": [_described(choice) for choice in choices],
        "variants": variants,
        "call": _call(cell, [*changeable, *cell.constraints]),
    }


def _story(layer: Neuron, unit: float) -> dict[str, Any]:
    """Return the group of a layer, what it begins with, and its presets."""
    kind = type(layer)
    named = kind is getattr(neurons, kind.__name__, None) or kind in FAMILY
    name = kind.__name__ if named else ""
    starts = STARTS.get(name, {})
    default = Stimulus() if kind in FAMILY else Stimulus(amplitude=0.5 * unit)
    return {
        "group": GROUPS[0] if kind in FAMILY else GROUPS[1] if named else GROUPS[2],
        "steps": RUNS.get(name, STEPS),
        "input": _stimulus(STIMULI.get(name, default), unit),
        "follows": [starts.get(state) for state in layer.active_states],
        "presets": [
            {
                "name": preset.name,
                "note": preset.note,
                "values": {
                    argument: _shown(layer, argument, value)
                    for argument, value in preset.arguments.items()
                },
                "input": _stimulus(preset.stimulus, unit),
            }
            for preset in PRESETS.get(name, ())
        ],
    }


def _stimulus(stimulus: Stimulus, unit: float) -> dict[str, Any]:
    """Describe an input in the unit of the page."""
    described = {**vars(stimulus), "seed": 1, "drawn": None}
    return {**described, "amplitude": float(f"{stimulus.amplitude / unit:.6g}")}


def _shown(layer: Neuron, name: str, value: float) -> float:
    """Return what the page shows of the value of a parameter: of a decay the half-life."""
    decays = is_decay(layer.constraints[name])
    return float(f"{decay_to_halflife(value) if decays else value:.5g}")


def described_tries(layers: Mapping[str, Neuron], units: Mapping[str, float]) -> list[Any]:
    """Return what there is to try with the neurons of a page, as links.

    Args:
        layers: by their names on the page.
        units: of their inputs, by the same names.
    """
    labels = {type(layer): label for label, layer in reversed(list(layers.items()))}
    found: list[Any] = []
    for each in TRIES:
        kind = getattr(snn, each.neuron, None) or getattr(neurons, each.neuron)
        if kind not in labels:
            continue
        label, pairs = labels[kind], dict(each.settings)
        if "amplitude" in pairs:
            pairs["amplitude"] = float(f"{pairs['amplitude'] / units[label]:.6g}")
        text = urlencode({"neuron": label, **pairs})
        found.append({"name": each.name, "text": each.text, "fragment": text})
    return found


def _bump(
    cell: Cell, spikes: Sequence[str], kwargs: Mapping[str, Any], sources: Sources
) -> list[Any] | None:
    """Print the derivative of the spike function; ``None`` where there are several that differ."""
    functions = [kwargs[name] for name in spikes]
    if any(each != functions[0] for each in functions):
        return None
    plan = page_plan(spike_alone(cell), 1, {"spike": functions[0]})
    return [sources.add(plan)[1], described_literals(plan)]


def _described(choice: Choice) -> dict[str, Any]:
    """Describe a choice as plain data."""
    return {
        "name": choice.name,
        "labels": list(choice.labels),
        "keywords": [dict(each) for each in choice.keywords],
        "lines": [list(each) for each in choice.lines],
        "index": choice.index,
    }


def described_literals(plan: Plan) -> list[Any]:
    """Return the numbers that are compiled in, as JSON can hold them."""
    return [number if abs(number) < torch.inf else repr(number) for number in plan.literals]


def _loop(plan: Plan, sources: Sources) -> list[Any]:
    """Print the forward pass of a plan alone: its place, and its numbers."""
    return [sources.add_forward(plan), described_literals(plan)]


def _ndim(layer: Neuron) -> int:
    """Return the fewest dimensions that a step of this layer can have."""
    return -layer.dim if layer.dim < 0 else layer.dim + 1


def _kwargs(layer: Neuron, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the step kwargs of a layer in float64, some of its options replaced."""
    with torch.no_grad():
        kwargs = {**layer.step_kwargs(_ndim(layer), torch.float64), **overrides}
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            kwargs[name] = value.double()  # options that are tensors have the layer's dtype
    return kwargs


def page_plan(cell: Cell, ndim: int, kwargs: dict[str, Any]) -> Plan:
    """Trace one lane of a cell in float64."""
    program = program_of(cell, ndim, torch.float64, kwargs)
    operation = unknown(program.graph)
    if operation is not None:
        raise Unfusable(f"its step uses {operation}, which JavaScript lacks")
    if len(program.inputs) > 1:
        raise Unfusable("its step takes several inputs, and the page has one stimulus")
    return Plan(program, "javascript", -1, program.states, True, program.inputs, program.params)


def _fixed_options(layer: Neuron, changeable: Collection[str]) -> list[str]:
    """Return the options that the page cannot change, as text; without those of absent parts."""
    return [
        f"{name}={getattr(layer, name)!r}"
        for name in layer.options
        if name not in changeable
        and getattr(layer, name) is not None
        and getattr(layer, name.removesuffix("_ema")) is not None
    ]


def _thresholds(layer: Neuron) -> list[str]:
    return [name for name, c in layer.constraints.items() if c in (softplus, negative_softplus)]


def _letters(layer: Neuron) -> dict[str, bool] | None:
    """Return which parts one of the twelve layers has; ``None`` for any other layer."""
    if type(layer) not in FAMILY:
        return None
    name = type(layer).__name__
    parts = name.removesuffix("Readout").removesuffix("LIF")
    return {**{letter: letter in parts for letter in "SRB"}, "readout": name.endswith("Readout")}


def _about(layer: Neuron) -> dict[str, str]:
    """Return the first line of the class's docstring, and its first block of equations."""
    text = inspect.cleandoc(type(layer).__dict__.get("__doc__") or "")
    _, _, rest = text.partition("::\n\n")
    block = list(itertools.takewhile(lambda line: not line or line[0] == " ", rest.split("\n")))
    equations = inspect.cleandoc("\n".join(block))
    if isinstance(layer, LeakyIntegrator):
        equations = _RESET.sub(_each_reset, equations)
    return {"summary": text.partition("\n")[0], "equations": equations}


def _each_reset(found: re.Match[str]) -> str:
    """Return a statement, and below it what each reset, which the page changes, does."""
    before, sign, spike, threshold = found.groups()
    return (
        f"{before}\n"
        f"reset subtract:  mem = mem {sign} {spike} * {threshold}\n"
        f"reset zero:      mem = mem {sign} {spike} * mem\n"
        "reset none:      mem = mem"
    )


def start_of(layer: Neuron, name: str) -> list[float]:
    """Return what a state is before the first step: one value for all neurons, or one for each."""
    start: Tensor = getattr(layer, f"initial_{name}", torch.zeros(()))
    values: list[float] = start.detach().double().reshape(-1).tolist()
    return values


def _start(layer: Neuron, name: str, neuron: int) -> float:
    start = start_of(layer, name)
    return start[neuron if len(start) > 1 else 0]


def is_spiking(layer: Neuron) -> bool:
    """Whether the output of a layer is spikes."""
    surrogates = any(isinstance(getattr(layer, name), Surrogate) for name in layer.options)
    return surrogates or bool(_thresholds(layer))


def _unit(layer: Neuron, neuron: int) -> float:
    """Return the first unit of the input of which a half makes the neuron fire within a pulse.

    The millivolts of one neuron are the thresholds of another. It is the smallest where none does.
    """
    made = copy.deepcopy(layer).double()
    made.zero_states()
    shape = [1] * (-layer.dim if layer.dim < 0 else layer.dim + 1)
    shape[layer.dim] = layer.num_neurons
    for unit in UNITS:
        x = torch.full((_PULSE, *shape), unit / 2, dtype=torch.float64)
        with torch.no_grad(), fuse.backend("eager"):
            output = made.forward_sequence(x)[0]
        made.zero_states()
        if bool(output.movedim(layer.dim % len(shape) + 1, -1)[..., neuron].any()):
            return unit
    return UNITS[0]


def _parameter(layer: Neuron, name: str, neuron: int) -> dict[str, Any]:
    """Describe a parameter: kind, value, and how Python sets it."""
    cell = layer.cell
    is_argument = name in cell.arguments and name in cell.constraints
    default = cell.defaults.get(name)
    constraint = layer.constraints.get(name)
    kind = "weight"
    if constraint is not None:
        kind = "decay" if is_decay(constraint) else KINDS.get(constraint, kind)
    raw = getattr(layer, name if constraint is None else f"raw_{name}").detach().reshape(-1)
    value = raw.double().cpu()
    if constraint is None:  # an option that is a tensor
        line = f"neuron.{name}.fill_({{}})"
    else:
        value = layer.constrained(name, value)
        line = f"neuron.{name} = {'-' if kind == 'negative' else ''}{{}}"
    value = value[neuron if len(value) > 1 else 0]
    return {
        "name": name,
        "kind": kind,
        # as many digits as the float32 of a raw tensor has
        "value": float(f"{value.item():.7g}"),
        "keyword": is_argument,
        "default": default if is_argument and isinstance(default, (int, float)) else None,
        "line": line,
    }


def _name_of(kind: type) -> str:
    """Name a class as a program of the user's would."""
    for package in (snn, neurons):
        if kind in vars(package).values():
            return f"tt.{package.__name__.rpartition('.')[2]}.{kind.__name__}"
    return kind.__qualname__


def _call(cell: Cell, changed: Collection[str]) -> dict[str, Any]:
    """Return the call that makes the layer, without the arguments of what the page writes."""
    written = {argument for name in changed for argument in cell.arguments.get(name, ())}
    kept = [f"{name}={text}" for name, text in cell.call.named.items() if name not in written]
    return {"name": _name_of(cell.kind), "fixed": [*cell.call.positional, *kept]}


def _changeable(layer: Neuron) -> dict[str, list[str]]:
    """Return what the page can change besides parameters, with the options of the layer it sets."""
    found: dict[str, list[str]] = {}
    if isinstance(layer, LeakyIntegrator) and _thresholds(layer):
        found |= {"reset": ["reset"], "detach_reset": ["detach_reset"]}
    names = [name for name in layer.options if isinstance(getattr(layer, name), Surrogate)]
    # one choice for all; a layer with several surrogates keeps them
    if names and all(getattr(layer, name) == getattr(layer, names[0]) for name in names):
        found["surrogate"] = names
    return found


def _choice(cell: Cell, name: str, options: Sequence[str]) -> Choice:
    """Describe a choice: its values, and how Python gives each of them to the options."""
    given = cell.options[options[0]]
    values: Sequence[Any] = VALUES.get(name, SURROGATES)
    if given not in values:
        values = (given, *values)
    texts = [_written(value) for value in values]
    arguments = [argument for option in options for argument in cell.arguments.get(option, ())]
    keywords: list[dict[str, str]] = [{} for _ in values]
    lines: list[list[str]] = [[] for _ in values]
    index = list(values).index(given)
    for place, (value, text) in enumerate(zip(values, texts, strict=True)):
        if all(option in cell.arguments for option in options):
            changed = (each for each in arguments if cell.defaults[each] != value)
            keywords[place] = dict.fromkeys(changed, text)
        elif place != index:
            lines[place] = [f"neuron.{option} = {text}" for option in options]
    labels = [
        text.removeprefix("tt.functional.").replace("_surrogate(", "(").strip("'") for text in texts
    ]
    overrides = [dict.fromkeys(options, value) for value in values]
    return Choice(name, labels, overrides, keywords, lines, index)


def _written(value: object) -> str:
    """Write a value of an option as Python."""
    own = isinstance(value, Surrogate) and type(value).__module__.startswith("tracetorch.")
    return f"{'tt.functional.' if own else ''}{value!r}"
