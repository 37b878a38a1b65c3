"""Get and set the states of a whole model as one flat dict, and snapshot them for a restore."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_module, suggestion
from tracetorch.core.walk import join_path, named_modules
from tracetorch.snn.memory import check_value
from tracetorch.snn.module import TTModule, detached_state, keeps_states, layer_label
from tracetorch.snn.passes import note_written, states_of
from tracetorch.snn.sequence_layer import SequenceLayer


class ExtraStates(TTModule):
    """A module that carries more from step to step than what ``get_states`` finds: traces."""


def named_neurons(module: nn.Module) -> Iterator[tuple[str, SequenceLayer]]:
    """Iterate over the neuron layers in ``module``, itself included, each once, with its path."""
    for path, found in named_modules(module):
        if isinstance(found, SequenceLayer):
            yield path, found


def named_holders(module: nn.Module) -> Iterator[tuple[str, TTModule]]:
    """Iterate over what has states in ``module``: neuron layers, and modules with a memory."""
    for path, found in named_modules(module):
        if keeps_states(found):
            yield path, found


def get_states(module: nn.Module, *, detach: bool = True) -> dict[str, Tensor]:
    """Get every live state in ``module`` by path, ``"cells.0.mem"``; ``"mem"`` for a bare layer.

    Args:
        module: any ``nn.Module``.
        detach: independent copies, no two sharing memory, so that they can be saved with
            ``torch.save`` or safetensors; ``False``: the live tensors, still part of their graph.

    Raises:
        TypeError, ValueError: no module; a state to copy is of a ``torch.func`` transform.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3))
        >>> get_states(net)
        {}
        >>> _ = net(torch.ones(2, 4))
        >>> {name: list(state.shape) for name, state in get_states(net).items()}
        {'1.mem': [2, 3]}
    """
    check_module(module)
    states: dict[str, Tensor] = {}
    for full, (layer, name) in _names(named_holders(module)).items():
        state = states_of(layer, "read its states")[layer._attribute_of(name)]
        if state is not None:
            path = full.rpartition(".")[0]
            states[full] = detached_state(layer, name, state, path) if detach else state
    return states


def set_states(module: nn.Module, states: Mapping[str, Tensor]) -> None:
    """Replace every state in ``module`` by those in ``states``; layers not named go to ``None``.

    The tensors are copied, to the device of the layer, and stay part of a graph that they have.

    Args:
        module: any ``nn.Module``.
        states: what :func:`get_states` gave.

    Raises:
        TypeError, ValueError: no module or mapping, an unknown name, only some states of a layer,
            or others in shape or dtype than the layer's. Nothing has been changed then.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3))
        >>> _ = net(torch.ones(2, 4))
        >>> saved = get_states(net)
        >>> first = net(torch.ones(2, 4))
        >>> set_states(net, saved)
        >>> torch.equal(net(torch.ones(2, 4)), first)
        True
    """
    check_module(module)
    if not isinstance(states, Mapping):
        raise TypeError(f"states must be a mapping of names to tensors, got {states!r}.")
    layers = list(named_holders(module))
    known = _names(layers)
    for name in states:
        if name not in known:
            hint = suggestion(name, sorted(known))
            raise ValueError(f"no state is called {name!r}.{hint} There are {sorted(known)}.")
    for path, layer in layers:
        own = {n: states[k] for n in layer.active_states if (k := join_path(path, n)) in states}
        if isinstance(layer, SequenceLayer):
            _check(layer, own, path)
        else:
            for name, value in own.items():
                check_value(layer, name, value, layer_label(layer, path))
    for path, layer in layers:
        device = next((t.device for t in (*layer.parameters(), *layer.buffers())), None)
        own_states = states_of(layer, "set its states")
        for name in layer.active_states:
            state = states.get(join_path(path, name))
            own_states[layer._attribute_of(name)] = (
                None if state is None else state.clone().to(device)
            )
        layer._mark_states_current()
        note_written(layer)


def _names(layers: Iterable[tuple[str, TTModule]]) -> dict[str, tuple[TTModule, str]]:
    """Layer and state of every name; raises where a name would not say which."""
    names: dict[str, tuple[TTModule, str]] = {}
    for path, layer in layers:
        if "{" in path:
            raise ValueError(
                f"{path!r} is a layer in a set, which has no order. Use a list or a dict."
            )
        for name in layer.active_states:
            full = join_path(path, name)
            if full in names:
                raise ValueError(
                    f"two states would be called {full!r}. Keys must differ, without dots."
                )
            names[full] = layer, name
    return names


def _check(layer: SequenceLayer, states: dict[str, Tensor], path: str) -> None:
    if not states:
        return
    owner = layer_label(layer, path)
    missing = [name for name in layer.active_states if name not in states]
    if missing:
        raise ValueError(f"{owner} needs all of its states or none; {missing} are not given.")
    kind = layer._state_kind
    dtypes = (torch.float32, torch.float64) if kind.dtype is None else (kind.dtype,)
    for name, state in states.items():
        if not isinstance(state, Tensor) or state.dtype not in dtypes:
            got = state.dtype if isinstance(state, Tensor) else type(state).__name__
            kept = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise TypeError(f"{owner} keeps {name} in {kept}, got {got}.")
        ndim = state.ndim - len(kind.tail)
        step, rest = state.shape[: max(ndim, 0)], state.shape[max(ndim, 0) :]
        size = 1 if kind.per_sample else layer.num_neurons
        if not -ndim <= layer.dim < ndim or step[layer.dim] != size or rest != kind.tail:
            behind = f" and {list(kind.tail)} behind the dimensions of a step" if kind.tail else ""
            wanted = "one value per sample" if kind.per_sample else f"{size} neurons"
            raise ValueError(
                f"{owner} needs {name} with {wanted} at dim {layer.dim}{behind},"
                f" got shape {list(state.shape)}."
            )
    first = next(iter(states.values()))
    if any((s.shape, s.dtype) != (first.shape, first.dtype) for s in states.values()):
        shapes = {name: (list(state.shape), state.dtype) for name, state in states.items()}
        raise ValueError(f"{owner} needs its states in one shape and dtype, got {shapes}.")
