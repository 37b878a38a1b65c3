"""Write and read what resumes a training: optimizer, scheduler, random numbers, progress.

A ``state_dict`` of an optimizer or a scheduler is nested dicts, lists and numbers with tensors in
between. The tensors go into the file as those of the model do, the rest as JSON into its header, so
that reading a file runs none of its code. What neither holds, a function say, is refused by name.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.checkpoint.tensors import plain
from tracetorch.core.walk import named_parameters

TRAINING_PREFIX = "training "  # no parameter has this name: Python names have no spaces
_PLAIN = (bool, int, float, str, type(None))


class Stateful(Protocol):
    """An optimizer, a scheduler or a gradient scaler: what has a ``state_dict``."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take a state over."""


def encoded(
    model: nn.Module, parts: Mapping[str, Stateful], rng: bool, progress: object
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what the header says of a training, and the tensors that it names."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, object] = {name: part.state_dict() for name, part in parts.items()}
    header: dict[str, Any] = {
        "classes": {name: type(part).__name__ for name, part in parts.items()},
        "parameters": {name: optimized_names(model, part) for name, part in parts.items()},
    }
    for groups in header["parameters"].values():
        unnamed = sum(name == "" for group in groups or () for name in group)
        if unnamed > 1:
            raise ValueError(
                f"the optimizer has {unnamed} parameters that are not the model's, which nothing "
                "would tell apart when they are loaded. Give one module that holds them all, "
                "nn.ModuleList([model, head]) say."
            )
    if rng:
        values["rng"] = random_state()
    if progress is not None:
        values["progress"] = progress
    header["values"] = {name: _encode(value, name, tensors) for name, value in values.items()}
    return header, tensors


def optimized_names(model: nn.Module, part: Stateful) -> list[list[str]] | None:
    """List an optimizer's parameters by group, by path: its ``state_dict`` only numbers them."""
    if not isinstance(part, torch.optim.Optimizer):
        return None
    names = {id(p): plain(name) for name, p in named_parameters(model).items()}
    return [[names.get(id(p), "") for p in group["params"]] for group in part.param_groups]


def check_part(header: Mapping[str, Any], name: str, model: nn.Module, part: Stateful) -> None:
    """Raise ``ValueError`` where a part has another class, or other parameters, than saved."""
    kind = header.get("classes", {}).get(name)
    if kind != type(part).__name__:
        raise ValueError(f"the {name} is a {type(part).__name__}, in the file it is a {kind}")
    saved = header.get("parameters", {}).get(name)
    current = optimized_names(model, part)
    if None not in (saved, current) and saved != current:
        sizes = [[len(group) for group in groups] for groups in (current or (), saved)]
        pairs = zip_longest(*(chain(*groups) for groups in (current or (), saved)))
        mine, theirs = next((pair for pair in pairs if pair[0] != pair[1]), sizes)
        raise ValueError(
            f"the optimizer has {mine!r} where the file has {theirs!r}. Give it the same "
            "parameters in the same groups and order"
        )


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
    """Set what :func:`random_state` has returned."""
    words = np.array(state["numpy"]["state"]["key"], np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": words}})
    torch.set_rng_state(state["torch"])
    for device, of_device in enumerate(state["cuda"]):
        torch.cuda.set_rng_state(of_device, device)
    random.setstate(state["python"])


def _encode(value: object, where: str, tensors: dict[str, Tensor]) -> object:
    """Encode as JSON each container as kind and items: JSON has no tuples, and text as keys."""
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


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what :func:`encoded` has made a value of; it shares no memory with ``tensors``."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content].clone()
    if kind in ("dict", "counter"):
        pairs = {key: decode(v, tensors) for key, v in content}
        return Counter(pairs) if kind == "counter" else pairs
    items = [decode(v, tensors) for v in content]
    return {"list": list, "tuple": tuple}[kind](items)
