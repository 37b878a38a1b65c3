"""Write and read what resumes a training: optimizer, scheduler, random numbers, progress.

A ``state_dict`` of an optimizer or a scheduler is nested dicts, lists and numbers with tensors in
between. The tensors go into the file as those of the model do, the rest as JSON into its header, so
that reading a file runs none of its code. What neither holds, a function say, is refused by name.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.checkpoint.wrappers import plain
from tracetorch.core.walk import named_parameters

TRAINING_PREFIX = "training "  # no parameter has this name: Python names have no spaces
_PLAIN = (bool, int, float, str, type(None))


class Stateful(Protocol):
    """An optimizer, a scheduler or a gradient scaler: what has a ``state_dict``."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take a state over."""


def parts_of(**parts: Stateful | None) -> dict[str, Stateful]:
    """Return the parts that were given, by name.

    Raises:
        TypeError: one has no ``state_dict``.
    """
    given = {name: part for name, part in parts.items() if part is not None}
    for name, part in given.items():
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise TypeError(
                f"{name} must have state_dict and load_state_dict, got {type(part).__name__}."
            )
    return given


def encoded(
    model: nn.Module, parts: Mapping[str, Stateful], rng: bool, progress: object
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what the header says of a training, and the tensors that it names.

    Raises:
        TypeError: something is neither a tensor nor JSON.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, object] = {name: part.state_dict() for name, part in parts.items()}
    header: dict[str, Any] = {
        "parameters": {name: optimized_names(model, part) for name, part in parts.items()}
    }
    if rng:
        values["rng"] = random_state()
    if progress is not None:
        values["progress"] = progress
    header["values"] = {name: _encode(value, name, tensors) for name, value in values.items()}
    return header, tensors


def decoded(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the values of :func:`encoded` by name; they share no memory with ``tensors``.

    Raises:
        ValueError: the header is not what :func:`encoded` writes.
    """
    try:
        return {name: _decode(value, tensors) for name, value in header["values"].items()}
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"what it says of a training cannot be read: {error!r}") from None


def optimized_names(model: nn.Module, part: Stateful) -> list[list[str]] | None:
    """List the paths of an optimizer's parameters by group; ``None`` for what is no optimizer.

    A ``state_dict`` numbers the parameters: without names, moments would go to whichever
    parameter is in that place now.
    """
    if not isinstance(part, torch.optim.Optimizer):
        return None
    names = {id(p): plain(name) for name, p in named_parameters(model).items()}
    return [[names.get(id(p), "") for p in group["params"]] for group in part.param_groups]


def check_parameters(saved: list[list[str]] | None, model: nn.Module, part: Stateful) -> None:
    """Raise ``ValueError`` where an optimizer has other parameters, or other groups, than saved."""
    current = optimized_names(model, part)
    if saved is None or current is None or saved == current:
        return
    if [len(group) for group in saved] != [len(group) for group in current]:
        raise ValueError(
            f"the optimizer has groups of {[len(group) for group in current]} parameters, in the "
            f"file they are of {[len(group) for group in saved]}. Group them as they were"
        )
    mine, theirs = next(
        pair
        for one, other in zip(current, saved, strict=True)
        for pair in zip(one, other, strict=True)
        if pair[0] != pair[1]
    )
    raise ValueError(
        f"the optimizer has {mine!r} where the file has {theirs!r}. Give it the parameters in the "
        "order in which it had them"
    )


@contextlib.contextmanager
def restored_on_failure(parts: Mapping[str, Stateful], rng: bool) -> Iterator[None]:
    """Give every part, and the random numbers, their state back where the block fails."""
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    numbers = random_state() if rng else None
    try:
        yield
    except BaseException:
        for name, part in parts.items():
            part.load_state_dict(before[name])
        if numbers is not None:
            set_random_state(numbers)
        raise


def random_state() -> dict[str, Any]:
    """Return the state of PyTorch's, NumPy's and Python's global random numbers."""
    numpy_state: Any = np.random.get_state(legacy=False)
    key = [int(word) for word in numpy_state["state"]["key"]]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": key}},
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set what :func:`random_state` has returned.

    Raises:
        ValueError: it holds the numbers of more GPUs than there are.
    """
    if len(state["cuda"]) > torch.cuda.device_count():
        raise ValueError(
            f"the file has the random numbers of {len(state['cuda'])} GPUs, here are "
            f"{torch.cuda.device_count()}. Load without rng=True"
        )
    words = np.array(state["numpy"]["state"]["key"], np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": words}})
    torch.set_rng_state(state["torch"])
    for device, of_device in enumerate(state["cuda"]):
        torch.cuda.set_rng_state(of_device, device)
    random.setstate(state["python"])


def _encode(value: object, where: str, tensors: dict[str, Tensor]) -> object:
    """Encode a value as JSON: numbers and text as they are, each container as its kind and items.

    JSON has no tuples, and its keys are text: the state of an optimizer has numbers as keys.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        name = f"{TRAINING_PREFIX}{len(tensors)}"
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, np.generic) and isinstance(value.item(), _PLAIN):
        return value.item()
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        items = [_encode(v, f"{where}[{i}]", tensors) for i, v in enumerate(value)]
        return {type(value).__name__: items}
    if isinstance(value, dict) and all(type(key) in _PLAIN for key in value):
        items = [[key, _encode(v, f"{where}[{key!r}]", tensors)] for key, v in value.items()]
        return {"counter" if isinstance(value, Counter) else "dict": items}
    raise TypeError(
        f"{where} is a {type(value).__name__}, which is neither a tensor nor a number, a text or a "
        "container of them. Leave it out, and make it anew before you load."
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content].clone()
    if kind in ("dict", "counter"):
        pairs = {key: _decode(v, tensors) for key, v in content}
        return Counter(pairs) if kind == "counter" else pairs
    items = [_decode(v, tensors) for v in content]
    return {"list": list, "tuple": tuple}[kind](items)
