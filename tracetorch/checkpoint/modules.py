"""Describe every module of a model by class and settings, and compare a file's with a model's."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from functools import lru_cache
from textwrap import shorten
from types import MethodType
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from tracetorch.checkpoint.layers import only_one_has
from tracetorch.checkpoint.tensors import plain
from tracetorch.core.walk import hidden_modules
from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.sequence_layer import SequenceLayer

ModuleDescription: TypeAlias = dict[str, str]
Descriptions: TypeAlias = "Mapping[str, ModuleDescription]"

# Modules that change no output in evaluation mode: a model may gain, lose or replace them.
_NEUTRAL: tuple[type, ...] = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout, LockedDropout),
)
# 1d, 2d, 3d and Sync differ in the inputs that they take.
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Arguments of training, of memory and of conversion, and those that the tensors' names repeat.
_IGNORED = (
    *("bias", "clock", "dropout", "enable_nested_tensor", "inplace", "mask_check", "momentum"),
    *("process_group", "scale_grad_by_freq", "self", "shift", "sparse"),
)
# Classes that PyTorch makes around a module's own: FSDPLinear, ParametrizedLinear.
_GENERATED = ("torch.distributed.", "torch.nn.utils.")
_LIBRARIES = {"torch": "nn.", "tracetorch": "tt."}
_LONGEST = 120  # characters of a setting in a message
_HEAVISIDE = "the Heaviside step"
_GRID = (-3.7, -1.0, -0.6, -1e-3, 0.0, 1e-3, 0.6, 1.0, 3.7)


def describe_modules(model: nn.Module) -> dict[str, ModuleDescription]:
    """Describe every module that can change an output, by path.

    A module of PyTorch or traceTorch is described by its class and by the arguments of its
    constructor that it keeps; one of any other class by the name of the class. A neuron layer adds
    to :func:`tracetorch.checkpoint.layers.describe_layers` the constraints of its parameters and
    the forward values of its spike functions.
    """
    described: dict[str, ModuleDescription] = {}
    surrogates: list[str] = []
    for root, hidden in [("", model), *hidden_modules(model)]:
        # A module may be used under several names, in another model by several modules.
        for path, module in hidden.named_modules(prefix=root, remove_duplicate=False):
            kind: type = type(module)
            neutral = kind in _NEUTRAL or kind.__module__ == "torch.nn.modules.loss"
            neutral |= kind is nn.Sequential and not module._modules
            if neutral or f"{path}.".startswith(tuple(surrogates)):
                continue
            text = dict(_settings(module))
            kind = next(k for k in kind.__mro__ if not k.__module__.startswith(_GENERATED))
            name = "BatchNorm" if kind in _BATCH_NORMS else kind.__name__
            name = _LIBRARIES.get(kind.__module__.partition(".")[0], "") + name
            if isinstance(module, SequenceLayer):
                name = "tt.Neuron"  # describe_layers names the class with the equations
            # The module in a wrapper comes after it, and has its path.
            described[plain(path)] = {"class": name, **text}
            # Surrogates that are modules change no output, nor does what they hold.
            if isinstance(module, SequenceLayer):
                prefix = f"{path}." if path else ""
                steps = [name for name in module._options if text.get(name) == _HEAVISIDE]
                surrogates += [f"{prefix}{name}." for name in steps]
    return described


def differences(
    file: Descriptions, model: Descriptions, strict: bool, loaded: Set[str]
) -> list[str]:
    """List the modules that would compute something else with the values of the file.

    With ``strict`` every class must be the same, and a module that only one of them has is a
    difference too; else settings must, and classes of libraries at the paths ``loaded``, which
    receive values.
    """
    found: list[str] = []
    for path in {**file, **model}:
        name = f"module {path!r}" if path else "the model"
        if path not in model or path not in file:
            found += [f"{name}: {only_one_has(path, file, model, 'class')}"] * strict
            continue
        saved, built = file[path], model[path]
        if saved["class"] != built["class"]:
            from_libraries = "." in saved["class"] and "." in built["class"]
            if strict or (from_libraries and path in loaded):
                found.append(f"{name}: {saved['class']} in the file, {built['class']} in the model")
            continue
        # Another version of PyTorch may keep more arguments.
        for key in [key for key in saved if key in built and saved[key] != built[key]]:
            texts = saved[key], built[key]
            # where only the bounds of a parameter differ, the values within both mean the same
            decays = all(re.fullmatch(r"sigmoid( from .+)?", text) for text in texts)
            bounds = decays or texts == ("unbounded", "clamp")
            if not (key.startswith("constraint of ") and bounds):
                short = [shorten(text, _LONGEST) for text in texts]
                found.append(
                    f"{name}, {saved['class']}: {key}: {short[0]} in the file, {short[1]} in the "
                    "model"
                )
    return found


def _settings(module: nn.Module) -> Iterator[tuple[str, str]]:
    values: dict[str, object] = {}
    if isinstance(module, SequenceLayer):
        for name, constraint in module.constraints.items():
            yield f"constraint of {name}", constraint.name
        # describe_layers has the options that are numbers, flags or words.
        options = {name: getattr(module, name) for name in module._options}
        values = {k: v for k, v in options.items() if callable(v) or isinstance(v, (list, tuple))}
    else:
        kept, kind = vars(module), cast(Any, type(module))
        values = {name: kept[name] for name in _arguments(kind) if name in kept}
    for name, value in values.items():
        text = _text(name, value)
        if text is not None:
            yield name, text


@lru_cache(maxsize=1024)
def _arguments(kind: Any) -> tuple[str, ...]:
    """Return the constructor arguments of a class and its bases, as far as libraries define it."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in _LIBRARIES and "__init__" in vars(base):
            for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items():
                # self.args and self.kwargs are the user's.
                if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    names[name] = None
    return tuple(name for name in names if name not in _IGNORED)


def _text(name: str, value: object) -> str | None:
    """Write a setting so that equal ones have equal texts: 2 and (2, 2), 1 and 1.0."""
    if is_dataclass(value) and not callable(value):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        items = [_text(name, item) for item in value]
        if None in items:
            return None
        numbers = all(isinstance(item, (int, float)) for item in value)
        # LayerNorm((4, 4)) is another than LayerNorm(4).
        if numbers and len(set(items)) == 1 and name != "normalized_shape":
            return items[0]
        return f"({', '.join(map(str, items))})"
    if isinstance(value, float) and value.is_integer():
        return repr(int(value))
    if isinstance(value, (bool, int, float, str, type(None))):
        return repr(value)
    return _forward_values(value) if callable(value) and not isinstance(value, type) else None


def _forward_values(function: Callable[..., Any]) -> str:
    """Evaluate a function of one tensor at some points: a name does not say what it computes."""
    u = torch.tensor(_GRID, dtype=torch.float32, device="cpu")
    try:
        # A copy, and seeded: the function may hold something, or be random. A method holds a model.
        copied = function if isinstance(function, MethodType) else copy.deepcopy(function)
        if isinstance(copied, nn.Module):
            copied.cpu()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.default_generator.manual_seed(0)
            values = copied(u.clone())
        # A parameter decides, which is loaded: its present value says nothing.
        is_trained = values.requires_grad or (
            isinstance(function, nn.Module) and bool(function.state_dict())
        )
        if torch.equal(values.detach().float(), (u > 0).float()):
            return _HEAVISIDE
        if not is_trained:
            points = ", ".join(f"{point:g}" for point in _GRID)
            return f"{', '.join(f'{value:.3g}' for value in values.tolist())} at {points}"
    except Exception:  # whatever a function that takes other arguments raises
        pass
    return str(getattr(function, "__name__", type(function).__name__))
