"""Describe a small network for its page: layers, their printed loops, and the data that it learns.

Neurons run the loops that are printed of their steps, on raw parameters: a step constrains them
first, so that the printed derivative is that of what PyTorch trains. Linear layers are their
weights; the page multiplies them. Data of two features that are constant in time, or a spike each,
lie in a plane, on which the page shows what the network says of every point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tracetorch.cell import Constraint
from tracetorch.core.checks import check_unsharded
from tracetorch.fuse.ir.graph import Unfusable
from tracetorch.plot.playground_data import (
    Sources,
    check_finite,
    described_literals,
    is_spiking,
    page_plan,
    start_of,
)
from tracetorch.snn.neuron import Neuron, beside_step, has_step

Samples: TypeAlias = "tuple[Tensor, Tensor]"
_NDIM = 2  # of the tensor of one step, [B, features]
_ALLOWED = "nn.Linear and neuron layers with a step"
_MOST_NUMBERS = 4_000_000  # of data in a page, some 20 bytes of text each


@dataclass(frozen=True)
class RawStep:
    """A step that constrains its raw parameters first, so that its gradients are theirs.

    Args:
        step: the step of the neuron.
        constraints: of the parameters, by name.
    """

    step: Callable[..., tuple[Any, ...]]
    constraints: tuple[tuple[str, Constraint], ...]

    def __call__(self, *tensors: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run one step."""
        raw = dict(kwargs)
        constraints = dict(self.constraints)

        def value(name: str) -> Tensor:
            above = constraints[name].above
            return constraints[name](raw[name], *([] if above is None else [value(above)]))

        return self.step(*tensors, **{**kwargs, **{name: value(name) for name in constraints}})


def describe_network(
    caller: str, model: nn.Sequential, sources: Sources, *, trains: bool
) -> list[dict[str, Any]]:
    """Return what the page must know of each layer; printed loops go into ``sources``.

    Args:
        caller: name of the public function, for messages.
        model: of linear layers and neurons, each of which takes what the one before returns.
        sources: of the page.
        trains: whether the page computes gradients.

    Raises:
        ValueError: a layer is none of those, does not fit, or cannot be compiled; a layer or a
            parameter is there twice, or a parameter is not finite.
    """
    layers: list[dict[str, Any]] = []
    seen: set[nn.Module] = set()
    owners: dict[Tensor, str] = {}
    size: int | None = None
    for path, module in _parts(caller, model):
        where = f"{caller}: layer {path!r}, {repr(module).partition('(')[0]},"
        if module in seen:
            raise ValueError(f"{where} is there twice, and a page has one of each. Copy it.")
        seen.add(module)
        check_unsharded(module, caller)
        if any(t.is_meta for t in (*module.parameters(), *module.buffers())):
            raise ValueError(
                f"{where} is on the device meta, where parameters have no values. Call "
                'model.to_empty(device="cpu"), and load them.'
            )
        check_finite(where, module)
        for name, each in module.named_parameters(prefix=path):
            if owners.setdefault(each, name) != name:
                raise ValueError(
                    f"{where} shares {name!r} with {owners[each]!r}, and a page would train two of "
                    "them. Copy it."
                )
        if type(module) is nn.Linear:
            layer = _linear(path, module)
        elif isinstance(module, Neuron) and has_step(module):
            layer = _neuron(where, path, module, sources, trains)
        else:
            raise ValueError(f"{where} is none that a page can run: {_ALLOWED}.")
        if size is not None and size != layer["inputs"]:
            raise ValueError(f"{where} takes {layer['inputs']} inputs, and is given {size}.")
        size = layer["size"]
        layers.append(layer)
    if not any(layer["kind"] == "neuron" for layer in layers):
        raise ValueError(f"{caller}: the network has no neurons. A page shows {_ALLOWED}.")
    return layers


def _parts(caller: str, model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of nested ``Sequential``s in order, each as often as it is called."""
    where = f"{caller}: {f'layer {path!r}, ' if path else ''}{repr(model).partition('(')[0]},"
    if any(vars(model).get(name) for name in ("_forward_hooks", "_forward_pre_hooks")):
        raise ValueError(f"{where} has hooks, which a page would not run. Remove them.")
    chain = isinstance(model, nn.Sequential)
    if "forward" in vars(model) or (chain and type(model).forward is not nn.Sequential.forward):
        raise ValueError(f"{where} has a forward of its own, which a page would not run.")
    if not chain:
        yield path, model
        return
    for name, part in model._modules.items():
        if part is not None:
            yield from _parts(caller, part, f"{path}.{name}" if path else name)


def _tensor(name: str, values: Tensor) -> dict[str, Any]:
    numbers = values.detach().cpu().double().flatten()
    return {"name": name, "values": numbers.tolist(), "learned": values.requires_grad}


def _linear(path: str, module: nn.Linear) -> dict[str, Any]:
    given = {name: each for name, each in module._parameters.items() if each is not None}
    return {
        "kind": "linear",
        "name": path,
        "title": f"Linear({module.in_features}, {module.out_features})",
        "inputs": module.in_features,
        "size": module.out_features,
        "tensors": [_tensor(name, each) for name, each in given.items()],
    }


def _neuron(where: str, path: str, layer: Neuron, sources: Sources, trains: bool) -> dict[str, Any]:
    cell = layer.cell
    constraints = cell.constraints
    kwargs = layer.step_kwargs(_NDIM, torch.float64)
    options = [n for n, v in kwargs.items() if isinstance(v, Tensor) and n not in constraints]
    raw = {name: getattr(layer, f"raw_{name}") for name in constraints}
    raw |= {name: kwargs[name] for name in options}
    try:
        if (own := beside_step(layer)) is not None:
            raise Unfusable(f"it {own}")
        if cell.dim_from_end(_NDIM) != -1:
            raise Unfusable(f"its neurons are in dimension {cell.dim}, and a page has [B, N]")
        doubled = {name: value.detach().double().cpu() for name, value in raw.items()}
        step = RawStep(cell.step, tuple(constraints.items()))
        plan = page_plan(replace(cell, step=step), _NDIM, {**kwargs, **doubled})
    except Unfusable as reason:
        raise ValueError(f"{where} cannot be compiled: {reason}.") from None
    places = sources.add(plan) if trains else [sources.add_forward(plan)]
    shown = [name for name in cell.active if name != "prev_output"]
    return {
        "kind": "neuron",
        "name": path,
        "title": repr(layer).partition("\n")[0],
        "inputs": layer.num_neurons,
        "size": layer.num_neurons,
        "states": list(cell.active),
        "shown": shown[0],
        "spiking": is_spiking(layer),
        "start": [start_of(layer, name) for name in cell.active],
        "forward": places[0],
        "backward": places[-1],
        "literals": described_literals(plan),
        "tensors": [
            _tensor(f"raw_{name}" if name in constraints else name, raw[name])
            for name in plan.program.params
        ],
    }


def describe_data(caller: str, data: object, inputs: int, classes: int) -> list[dict[str, Any]]:
    """Return the data sets of a page, by name in the order in which they are given.

    Args:
        caller: name of the public function, for messages.
        data: a pair, or several by name.
        inputs: features that the network takes.
        classes: outputs that it has.

    Raises:
        TypeError: it is neither a pair of tensors nor a mapping from names to pairs.
        ValueError: shapes, labels or numbers do not fit.
    """
    named = data if isinstance(data, Mapping) else {"data": data}
    if not named:
        raise ValueError(f"{caller}: there are no data in the mapping.")
    return [_samples(caller, name, pair, inputs, classes) for name, pair in named.items()]


def _samples(caller: str, name: Any, pair: Any, inputs: int, classes: int) -> dict[str, Any]:
    is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not isinstance(name, str) or not is_pair or not all(isinstance(t, Tensor) for t in pair):
        raise TypeError(
            f"{caller}: data must be a pair (x, labels) of tensors, or a mapping from names to "
            f"pairs, got {name!r}: {type(pair).__name__}."
        )
    x, labels = (each.detach().cpu() for each in pair)
    where = f"{caller}: data {name!r}:"
    if x.ndim != 3 or x.shape[-1] != inputs or not x.numel() or not x.is_floating_point():
        raise ValueError(
            f"{where} x must be floats [T, B, {inputs}], got {x.dtype} {list(x.shape)}."
        )
    if not x.isfinite().all():
        raise ValueError(f"{where} x must be finite. Leave out what is not, or x.nan_to_num().")
    if classes < 2:
        raise ValueError(f"{where} a network that learns classes has two outputs at least.")
    whole = labels.dtype in (torch.int64, torch.int32, torch.uint8, torch.int16)
    if labels.shape != x.shape[1:2] or not whole:
        raise ValueError(
            f"{where} labels must be integers [{x.shape[1]}], got {labels.dtype} "
            f"{list(labels.shape)}."
        )
    if not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ValueError(
            f"{where} labels must be from 0 to {classes - 1}, the network's outputs, got "
            f"{int(labels.min())} to {int(labels.max())}."
        )
    form, numbers = _form(x.double())
    if numbers.numel() > _MOST_NUMBERS:
        raise ValueError(
            f"{where} a page holds {_MOST_NUMBERS:,} numbers, got {numbers.numel():,}, x "
            f"{list(x.shape)}. Give it fewer samples, x[:, :{_fewer(numbers)}]."
        )
    return {
        "name": name,
        "steps": len(x),
        "form": form,
        "numbers": numbers.flatten().tolist(),
        "labels": labels.tolist(),
    }


def _fewer(numbers: Tensor) -> int:
    return max(1, _MOST_NUMBERS // numbers[0].numel())


def _form(x: Tensor) -> tuple[str, Tensor]:
    """Return the shortest form of sequences ``[T, B, F]``: numbers, times of a spike, or all."""
    if (x == x[0]).all():
        return "values", x[0]
    spikes = x.sum(0)
    if ((x == 0) | (x == 1)).all() and (spikes == 1).all():
        return "times", x.argmax(0)
    return "sequences", x.permute(1, 2, 0)
