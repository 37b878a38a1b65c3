"""Describe neurons for the playground page: parameters, choices, and the Python that makes them.

The playground has no equation of its own: every pass over time in it is printed from a traced step,
once for each value of the choices that change the step, since the policy of the page forbids
``eval``. All inputs are in a unit, the first power of ten of which half a pulse makes the neuron
fire: millivolts for one, thresholds for another.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch import fuse, neurons, snn
from tracetorch.cell import Cell
from tracetorch.core.checks import check_has_values, check_unsharded
from tracetorch.functional.surrogates import SURROGATES, Surrogate
from tracetorch.fuse.codegen.javascript import (
    FUNCTIONS,
    SLOPES,
    backward_source,
    forward_source,
    unknown,
)
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir.graph import Unfusable
from tracetorch.fuse.ir.plan import Plan
from tracetorch.plot.firing_lines import firing_lines, smallest_shape, spike_alone
from tracetorch.plot.playground_story import FAMILY, described_story
from tracetorch.plot.recorded import check_index
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.neuron import Neuron, beside_step, spike_functions
from tracetorch.snn.parameters import fraction, is_decay, negative_softplus, softplus

# What the page takes a parameter for, by its constraint; decays are found by is_decay.
KINDS = {fraction: "fraction", softplus: "positive", negative_softplus: "negative"}
UNITS = (1.0, 10.0, 100.0, 1000.0)
"""Of an input: what the page multiplies all it is given by."""
# the statement of a docstring that resets the membrane, behind the one that spikes
_RESET = re.compile(r"^(.*?); +mem = mem ([-+]) (\w+) \* (\w+_threshold)$", re.MULTILINE)
# what each reset, which the page changes, does
_EACH_RESET = (
    r"\1\nreset subtract:  mem = mem \2 \3 * \4\nreset zero:      mem = mem \2 \3 * mem\n"
    "reset none:      mem = mem"
)
_PULSE = 25  # steps, as the page begins
VALUES: dict[str, tuple[Any, ...]] = {
    "reset": ("subtract", "zero", "none"),
    "detach_reset": (False, True),
}


@dataclass
class Sources:
    """Printed loops of a page, each once, by their place."""

    loops: dict[str, int] = field(default_factory=dict)

    def add(self, plan: Plan, slope: str | None = None) -> list[int]:
        """Return the places of both passes of a plan; ``slope`` stands for a spike's derivative."""
        return [self.add_forward(plan), self._place(backward_source(plan, slope))]

    def add_forward(self, plan: Plan) -> int:
        """Return the place of the forward pass of a plan."""
        return self._place(forward_source(plan))

    def _place(self, source: str) -> int:
        # without indentation: a page has many, and nobody reads them
        text = "\n".join(line.strip() for line in source.splitlines())
        return self.loops.setdefault(text, len(self.loops))

    def script(self) -> str:
        """Return the script that defines ``loops``, the list of all sources."""
        sources = ",\n".join(self.loops)
        return f'const loops = (() => {{\n"use strict";{FUNCTIONS}return [\n{sources}\n];\n}})();'


@dataclass(frozen=True)
class _AnySurrogate(Surrogate):
    """Stand-in for a surrogate: its derivative is an operation that the step has no use of."""

    operation: str

    def __post_init__(self) -> None:
        pass

    def derivative(self, u: Tensor) -> Tensor:
        function: Any = getattr(torch, self.operation)
        return function(u)  # type: ignore[no-any-return]


def check_layer(where: str, layer: nn.Module) -> None:
    """Raise ``ValueError`` for a layer that a page cannot run; ``where`` begins the message."""
    check_unsharded(layer, "save_playground")
    check_has_values(layer)
    if isinstance(layer, Neuron) and (own := beside_step(layer)) is not None:
        raise ValueError(f"{where} {own}, which a page would not run.")


def page_plan(where: str, cell: Cell, ndim: int, kwargs: dict[str, Any]) -> Plan:
    """Trace one lane of a cell in float64; ``where`` begins the message if that cannot be done."""
    try:
        program = program_of(cell, ndim, torch.float64, kwargs)
        operation = unknown(program.graph)
        if operation is not None:
            raise Unfusable(f"its step uses {operation}, which JavaScript lacks")
        if len(program.inputs) > 1:
            raise Unfusable("its step takes several inputs, and the page has one stimulus")
    except Unfusable as reason:
        raise ValueError(f"{where} cannot be compiled: {reason}.") from None
    return Plan(program, "javascript", -1, program.states, True, program.inputs, program.params)


def described_literals(plan: Plan) -> list[Any]:
    """Return the numbers that are compiled in, as JSON can hold them."""
    return [number if abs(number) < torch.inf else repr(number) for number in plan.literals]


def start_of(layer: Neuron, name: str) -> list[float]:
    """Return what a state is before the first step: one value for all neurons, or one for each."""
    start: Tensor = getattr(layer, f"initial_{name}", torch.zeros(()))
    values: list[float] = start.detach().double().reshape(-1).tolist()
    return values


def is_spiking(layer: Neuron) -> bool:
    surrogates = any(isinstance(getattr(layer, name), Surrogate) for name in layer._options)
    return surrogates or has_thresholds(layer)


def has_thresholds(layer: Neuron) -> bool:
    return any(each in (softplus, negative_softplus) for each in layer.constraints.values())


def describe_neuron(label: str, layer: Neuron, neuron: int, sources: Sources) -> dict[str, Any]:
    """Return what the page must know of a layer; its printed loops go into ``sources``."""
    neuron = check_index(f"save_playground: neuron of {layer!r}", neuron, layer.num_neurons)
    check_layer(f"save_playground: {layer!r}", layer)
    cell, kind = layer.cell, type(layer)
    starts = {name: start_of(layer, name) for name in cell.active}
    start = {name: values[neuron % len(values)] for name, values in starts.items()}
    changeable = _changeable(layer)
    choices = [_choice(cell, name, names) for name, names in changeable.items()]
    params, lines, variants, slopes = _variants(layer, choices, start, sources)
    changed = {name for names in changeable.values() for name in names}
    spiking = is_spiking(layer)
    unit = _unit(layer, neuron) if spiking else UNITS[0]
    silent = isinstance(layer, LeakyIntegrator) and not has_thresholds(layer)
    hidden = {"prev_output", "mem" if silent else ""} if isinstance(layer, LeakyIntegrator) else ()
    letters = None
    if kind in FAMILY:
        parts = kind.__name__.removesuffix("Readout").removesuffix("LIF")
        readout = kind.__name__.endswith("Readout")
        letters = {**{letter: letter in parts for letter in "SRB"}, "readout": readout}
    fixed = [
        f"{name}={getattr(layer, name)!r}"
        for name in layer._options
        if name not in changed
        and name not in params
        # not those of absent parts
        and getattr(layer, name) is not None
        and getattr(layer, name.removesuffix("_ema")) is not None
    ]
    return {
        "label": label,
        "letters": letters,
        "about": _about(layer),
        "states": list(cell.active),
        "start": list(start.values()),
        "shown": [name for name in cell.active if name not in hidden],
        "output": "output = mem" if silent else "output",
        "spiking": spiking,
        "lines": lines,
        "unit": unit,
        **described_story(layer, unit),
        "params": [_parameter(layer, name, neuron) for name in params],
        "options": fixed,
        "choices": [described for _, described in choices],
        "variants": variants,
        "slopes": slopes,
        "call": described_call(cell, [*changed, *cell.constraints]),
    }


def _variants(
    layer: Neuron, choices: Sequence[Any], start: Mapping[str, float], sources: Sources
) -> tuple[Sequence[str], list[dict[str, Any]], list[list[Any]], list[list[Any]]]:
    """Print the loops of a layer for all choices; return its parameters, its lines, and the loops.

    Of each variant: forward and backward pass, numbers, the lines that move, and the state before
    its reset. The last list are the derivatives of the spike: one, or that of each surrogate among
    the choices, which has no variants of its own.
    """
    cell, spikes = layer.cell, spike_functions(layer)
    ndim = len(smallest_shape(cell))
    where = f"save_playground: {layer!r}"
    with torch.no_grad():
        own = layer.step_kwargs(ndim, torch.float64)
    # options that are tensors, too
    own = {
        name: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for name, v in own.items()
    }
    plan = page_plan(where, cell, ndim, own)
    params, lines = plan.program.params, firing_lines(cell, spikes, start, own)
    surrogates = [
        each for overrides, d in choices if d["name"] == "surrogate" for each in overrides
    ]
    slope = _free_operation(where, plan) if surrogates else None
    stand_in = {} if slope is None else dict.fromkeys(surrogates[0], _AnySurrogate(slope))
    moving: dict[Any, list[Any]] = {}
    variants: list[list[Any]] = []

    def loop(step: Any, kwargs: dict[str, Any]) -> list[Any]:
        plan = page_plan(where, replace(cell, step=step), ndim, kwargs)
        return [sources.add_forward(plan), described_literals(plan)]

    looped = [overrides for overrides, each in choices if each["name"] != "surrogate"]
    for overrides in itertools.product(*looped):
        merged = {name: value for each in overrides for name, value in each.items()}
        kwargs = {**own, **merged, **stand_in}
        plan = page_plan(where, cell, ndim, kwargs)
        key = merged.get("reset")  # forward, a detached reset does the same
        if key not in moving:
            moved = [None if name else loop(line, kwargs) for line, name in lines]
            before = loop(replace(lines[0][0], call=None), kwargs) if lines else None
            moving[key] = [moved, before]
        variants.append([*sources.add(plan, slope), described_literals(plan), *moving[key]])
    alone = [next(iter(each.values())) for each in surrogates]
    if not alone and lines:
        alone = the_spike(spikes, own)
    slopes = [spike_slope(where, cell, spike, sources) for spike in alone]
    described = []
    for line, name in lines:
        state, place = cell.states[line.place], name and params.index(name)
        described.append({"state": state, "sign": line.sign, "param": place})
    return params, described, variants, slopes


def the_spike(names: Sequence[str], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the spike function of a neuron; an empty list where there are several, or none."""
    found = [kwargs[name] for name in names]
    return found[:1] if all(each == found[0] for each in found) else []


def spike_slope(where: str, cell: Cell, spike: Any, sources: Sources) -> list[Any]:
    """Print the derivative of a spike function alone; return its loop, and its numbers."""
    plan = page_plan(where, spike_alone(cell), 1, {"spike": spike})
    return [sources.add(plan)[1], described_literals(plan)]


def _free_operation(where: str, plan: Plan) -> str:
    """Return an operation that a step has no use of, to stand for the derivative of a spike."""
    used = {line.op for line in plan.program.graph.lines}
    for operation in SLOPES:
        if operation not in used:
            return operation
    raise ValueError(
        f"{where} cannot be compiled: its step uses all of {', '.join(SLOPES)}, of which one "
        "stands for the derivative of a spike. Write one of them by others."
    )


def _about(layer: Neuron) -> dict[str, str]:
    """Return the first line of the class's docstring, and its first block of equations."""
    text = inspect.cleandoc(type(layer).__dict__.get("__doc__") or "")
    _, _, rest = text.partition("::\n\n")
    block = list(itertools.takewhile(lambda line: not line or line[0] == " ", rest.split("\n")))
    equations = inspect.cleandoc("\n".join(block))
    if isinstance(layer, LeakyIntegrator):
        equations = _RESET.sub(_EACH_RESET, equations)
    return {"summary": text.partition("\n")[0], "equations": equations}


def _unit(layer: Neuron, neuron: int) -> float:
    """Return the first unit of which a half makes the neuron fire within a pulse, or the least."""
    made = copy.deepcopy(layer).double()
    shape = smallest_shape(layer.cell)
    for unit in UNITS:
        x = torch.full((_PULSE, *shape), unit / 2, dtype=torch.float64)
        made.zero_states()
        with torch.no_grad(), fuse.backend("eager"):
            output = made.forward_sequence(x)[0]
        if bool(output.movedim(layer.dim % len(shape) + 1, -1)[..., neuron].any()):
            return unit
    return UNITS[0]


def _parameter(layer: Neuron, name: str, neuron: int) -> dict[str, Any]:
    """Describe a parameter: kind, value, and how Python sets it."""
    cell = layer.cell
    is_argument = name in cell.arguments and name in cell.constraints
    default = cell.defaults.get(name)
    constraint = layer.constraints.get(name)
    if constraint is None:  # an option that is a tensor
        kind, value, line = "weight", getattr(layer, name), f"neuron.{name}.fill_({{}})"
    else:
        kind = "decay" if is_decay(constraint) else KINDS.get(constraint, "weight")
        raw = getattr(layer, f"raw_{name}").detach().double().cpu()
        value = layer._constrained(name, raw)
        line = f"neuron.{name} = {'-' if kind == 'negative' else ''}{{}}"
    value = value.detach().reshape(-1).double()
    return {
        "name": name,
        "kind": kind,
        # as many digits as the float32 of a raw tensor has
        "value": float(f"{value[neuron % len(value)].item():.7g}"),
        "keyword": is_argument,
        "default": default if is_argument and isinstance(default, (int, float)) else None,
        "line": line,
    }


def described_call(cell: Cell, changed: Collection[str]) -> dict[str, Any]:
    """Return the call that makes the layer, without the arguments of what the page writes."""
    written = {argument for name in changed for argument in cell.arguments.get(name, ())}
    kept = [f"{name}={text}" for name, text in cell.call.named.items() if name not in written]
    # as a program of the user's would name the class
    packages = [each for each in (snn, neurons) if cell.kind in vars(each).values()]
    name = cell.kind.__qualname__
    if packages:
        name = f"tt.{packages[0].__name__.rpartition('.')[2]}.{cell.kind.__name__}"
    positional = cell.call.positional
    # alone in the last dimension, as it is in a pair; None: nobody knows how it is made so
    alone = None
    if positional[:1] == (str(cell.num_neurons),):
        alone = ["1", *positional[1:], *(text for text in kept if not text.startswith("dim="))]
    return {"name": name, "fixed": [*positional, *kept], "alone": alone}


def _changeable(layer: Neuron) -> dict[str, list[str]]:
    """Return what the page can change besides parameters, with the options of the layer it sets."""
    found: dict[str, list[str]] = {}
    if isinstance(layer, LeakyIntegrator) and has_thresholds(layer):
        found |= {"reset": ["reset"], "detach_reset": ["detach_reset"]}
    names = [name for name in layer._options if isinstance(getattr(layer, name), Surrogate)]
    # one choice for all; a layer with several surrogates keeps them, and one with another forward
    plain = all(type(getattr(layer, name)).__call__ is Surrogate.__call__ for name in names)
    if names and plain and all(getattr(layer, n) == getattr(layer, names[0]) for n in names):
        found["surrogate"] = names
    return found


def _choice(
    cell: Cell, name: str, options: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the step kwargs of each value of a choice, and how page and Python write them."""
    given = cell.options[options[0]]
    values: Sequence[Any] = VALUES.get(name, SURROGATES)
    if given not in values:
        values = (given, *values)
    texts = []
    for value in values:
        own = isinstance(value, Surrogate) and type(value).__module__.startswith("tracetorch.")
        texts.append(f"{'tt.functional.' if own else ''}{value!r}")
    arguments = [argument for option in options for argument in cell.arguments.get(option, ())]
    index = list(values).index(given)
    pairs = [*zip(values, texts, strict=True)]
    keywords: list[dict[str, str]] = [{} for _ in pairs]
    lines: list[list[str]] = [[] for _ in pairs]
    if all(option in cell.arguments for option in options):
        keywords = [
            dict.fromkeys((each for each in arguments if cell.defaults[each] != value), text)
            for value, text in pairs
        ]
    else:  # the constructor does not take it
        lines = [[f"neuron.{option} = {text}" for option in options] for text in texts]
        lines[index] = []
    described = {
        "name": name,
        "labels": [
            text.removeprefix("tt.functional.").replace("_surrogate(", "(").strip("'")
            for text in texts
        ],
        "keywords": keywords,
        "lines": lines,
        "index": index,
    }
    return [dict.fromkeys(options, value) for value in values], described
