"""Describe neurons for the playground page: parameters, choices, and the Python that makes them.

The playground has no equation of its own: every pass over time in it is printed from a traced step
(``tracetorch/fuse/codegen/javascript_loops.py``), once for each value of the choices that change
the step (reset, surrogate), since the policy of the page forbids ``eval``. Passes of one text are
written once. What Python line makes a neuron is found by trying: an argument of a constructor is
used for a parameter only if a layer made with it has that value; otherwise the raw tensor is
filled. All inputs are in a unit, the first power of ten of which half a pulse makes the neuron
fire: millivolts for one, thresholds for another.
"""

from __future__ import annotations

import ast
import copy
import inspect
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tracetorch import fuse, neurons, snn
from tracetorch.functional.surrogates import SURROGATES, Surrogate
from tracetorch.fuse.codegen.javascript_functions import functions_source
from tracetorch.fuse.codegen.javascript_loops import backward_source, forward_source, unknown
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir.graph import Graph, Unfusable
from tracetorch.fuse.ir.plan import Plan
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import (
    fraction,
    negative_softplus,
    sigmoid,
    softplus,
)

# What the page takes a parameter for, by its constraint.
KINDS = {
    sigmoid: "decay",
    fraction: "fraction",
    softplus: "positive",
    negative_softplus: "negative",
}
UNITS = (1.0, 10.0, 100.0, 1000.0)
"""Of an input: what the page multiplies all it is given by."""
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
        self.graphs += [plan.program.forward, plan.backward]
        # without indentation: a page has many, and nobody reads them
        sources = [
            "\n".join(line.strip() for line in source.splitlines())
            for source in (forward_source(plan), backward_source(plan))
        ]
        return [self.loops.setdefault(source, len(self.loops)) for source in sources]

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
    options = _changeable(layer)
    maker = Maker(layer, [name for names in options.values() for name in names])
    choices = [_choice(layer, maker, name, names) for name, names in options.items()]
    variants: list[list[Any]] = []
    for overrides in itertools.product(*(choice.overrides for choice in choices)):
        merged = {name: value for each in overrides for name, value in each.items()}
        try:
            plan = _plan(layer, merged)
        except Unfusable as reason:
            raise ValueError(f"{caller}: {layer!r} cannot be compiled: {reason}.") from None
        literals = [n if abs(n) < torch.inf else repr(n) for n in plan.literals]
        variants.append([*sources.add(plan), literals])
    changeable = {name for names in options.values() for name in names}
    spiking = any(isinstance(getattr(layer, name), Surrogate) for name in layer.options)
    silent = isinstance(layer, LeakyIntegrator) and not _thresholds(layer)
    spiking = spiking or bool(_thresholds(layer))
    hidden = {"prev_output", "mem" if silent else ""} if isinstance(layer, LeakyIntegrator) else ()
    return {
        "label": label,
        "letters": _letters(layer),
        "about": _about(layer),
        "states": list(layer.active_states),
        "start": [_start(layer, name, neuron) for name in layer.active_states],
        "shown": [name for name in layer.active_states if name not in hidden],
        "output": "output = mem" if silent else "output",
        "spiking": spiking,
        "unit": _unit(layer, neuron) if spiking else UNITS[0],
        "params": [_parameter(layer, name, neuron, maker) for name in plan.program.params],
        "options": _fixed_options(layer, {*changeable, *plan.program.params}),
        "choices": [
            {
                "name": choice.name,
                "labels": list(choice.labels),
                "keywords": [dict(each) for each in choice.keywords],
                "lines": [list(each) for each in choice.lines],
                "index": choice.index,
            }
            for choice in choices
        ],
        "variants": variants,
        "call": {"name": maker.name, "fixed": maker.fixed},
    }


def _plan(layer: Neuron, overrides: Mapping[str, Any]) -> Plan:
    """Trace one lane of a layer in float64, some of its options replaced."""
    # the fewest dimensions that a step of this layer can have
    ndim = -layer.dim if layer.dim < 0 else layer.dim + 1
    with torch.no_grad():
        kwargs = {**layer.step_kwargs(ndim, torch.float64), **overrides}
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            kwargs[name] = value.double()  # options that are tensors have the layer's dtype
    program = program_of(layer.cell, ndim, torch.float64, kwargs)
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
    return {"summary": text.partition("\n")[0], "equations": inspect.cleandoc("\n".join(block))}


def _start(layer: Neuron, name: str, neuron: int) -> float:
    """Return what a state of one neuron is before the first step."""
    start = getattr(layer, f"initial_{name}", torch.zeros(())).detach().reshape(-1)
    return float(start[neuron if len(start) > 1 else 0])


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


def _parameter(layer: Neuron, name: str, neuron: int, maker: Maker) -> dict[str, Any]:
    """Describe a parameter: kind, value, and how Python sets it."""
    constraint = layer.constraints.get(name)
    kind = "weight" if constraint is None else KINDS.get(constraint, "weight")
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
        "keyword": name in maker.arguments,
        "default": maker.arguments.get(name),
        "line": line,
    }


class Maker:
    """The call that makes a layer like a given one, found by making some.

    A constructor may call its arguments as it likes; one is used for a parameter or an option only
    if a layer that was made with it has that value.

    Args:
        layer: the layer.
        options: names of those that the page changes.

    """

    def __init__(self, layer: Neuron, options: Sequence[str]) -> None:
        self.kind = type(layer)
        self.name = self.kind.__qualname__
        for package in (snn, neurons):
            if self.kind in vars(package).values():
                self.name = f"tt.{package.__name__.rpartition('.')[2]}.{self.kind.__name__}"
        signature = inspect.signature(self.kind.__init__)
        self.defaults = {n: p.default for n, p in signature.parameters.items()}
        positional, keywords = _call_of(layer)
        # the page writes parameters and what it changes; all else stays as given
        written = {*layer.constraints, *options}
        if any(isinstance(getattr(layer, name), Surrogate) for name in options):
            written |= {n for n, value in self.defaults.items() if isinstance(value, Surrogate)}
        kept = {name: text for name, text in keywords.items() if name not in written}
        self.fixed = [*positional, *(f"{name}={text}" for name, text in kept.items())]
        self.values: list[Any] = []
        self.kept: dict[str, Any] = {}
        try:
            self.values = [ast.literal_eval(text) for text in positional]
            self.kept = {name: ast.literal_eval(text) for name, text in kept.items()}
        except ValueError:  # a tensor or an object, of which the text is no Python
            self.defaults = {}
        self.arguments = {
            name: default if isinstance(default, (int, float)) else None
            for name, default in self.defaults.items()
            if name in layer.constraints and self._sets(layer, name)
        }

    def made(self, **arguments: Any) -> Neuron | None:
        """Return a layer with these arguments, or ``None`` where the constructor refuses."""
        try:
            with torch.random.fork_rng([]):
                return self.kind(*self.values, **{**self.kept, **arguments})
        except Exception:
            return None

    def _sets(self, layer: Neuron, name: str) -> bool:
        """Whether the argument ``name`` is the value of the parameter (a magnitude below zero)."""
        constraint = layer.constraints[name]
        probe = 0.37
        made = self.made(**{name: probe})
        if made is None or made.constraints.get(name) is not constraint:
            return False
        found: float = getattr(made, name).detach().reshape(-1)[0].item()
        return abs(abs(found) - probe) < 1e-5 and (found < 0) == (constraint is negative_softplus)

    def keywords_of(self, options: Sequence[str], value: object) -> list[str] | None:
        """Return the arguments that, given ``value``, give it to all options; ``None``: none do."""
        found: list[str] = []
        left = set(options)
        for name, default in self.defaults.items():
            alike = isinstance(value, Surrogate) and isinstance(default, Surrogate)
            if left and (name in options or alike):
                made = self.made(**{name: value})
                sets = {n for n in left if made is not None and getattr(made, n, None) == value}
                if sets:
                    found.append(name)
                    left -= sets
        return None if left else found


def _call_of(layer: Neuron) -> tuple[list[str], dict[str, str]]:
    """Return the arguments of the constructor call that ``repr`` shows, as text."""
    text = layer.__dict__.get("_call", "f()")
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError:
        return [], {}
    if not isinstance(call, ast.Call):
        return [], {}
    keywords = {each.arg: ast.unparse(each.value) for each in call.keywords if each.arg}
    return [ast.unparse(each) for each in call.args], keywords


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


def _choice(layer: Neuron, maker: Maker, name: str, options: Sequence[str]) -> Choice:
    """Describe a choice: its values, and how Python gives each of them to the options."""
    given = getattr(layer, options[0])
    values: Sequence[Any] = VALUES.get(name, SURROGATES)
    if given not in values:
        values = (given, *values)
    index = list(values).index(given)
    texts = [_written(value) for value in values]
    # a value that is not the default shows which argument gives it
    names = maker.keywords_of(options, values[-1])
    keywords: list[dict[str, str]] = [{} for _ in values]
    lines: list[list[str]] = [[] for _ in values]
    for place, (value, text) in enumerate(zip(values, texts, strict=True)):
        if names is not None:
            keywords[place] = {n: text for n in names if maker.defaults[n] != value}
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
