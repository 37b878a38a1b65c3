"""Describe a model's modules without their values, and compare a file's with a model's."""

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

from tracetorch.core.walk import hidden_modules
from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.states import named_neurons

Parts: TypeAlias = "Mapping[str, dict[str, Any]]"  # descriptions by path

_SEGMENTS = frozenset(("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"))
# Options of the backward pass: a model that trains differently may still load the values. The last
# is in the state_dict.
_LEFT_OUT = frozenset({"detach_reset", "unit", "rec_weight_fraction"})
# Options that older files lack, each with the value that those files mean.
_ADDED_OPTIONS = {"substeps": 1, "output_bits": 0}
_TEXTS = (bool, int, float, str, type(None))
_MISSING = object()
# Modules that change no output in evaluation mode: a model may gain, lose or replace them.
_NEUTRAL = (nn.Identity, LockedDropout)
_NEUTRAL_FILES = ("torch.nn.modules.dropout", "torch.nn.modules.loss")
# 1d, 2d, 3d and Sync differ in the inputs that they take.
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Arguments of training, of memory and of conversion, and those that the tensors' names repeat.
_IGNORED = (
    *("args", "bias", "clock", "dropout", "enable_nested_tensor", "inplace", "kwargs"),
    *("mask_check", "momentum", "process_group", "scale_grad_by_freq", "self", "shift", "sparse"),
)
# Classes that PyTorch makes around a module's own: FSDPLinear, ParametrizedLinear.
_GENERATED = ("torch.distributed.", "torch.nn.utils.")
_LIBRARIES = {"torch": "nn.", "tracetorch": "tt."}
_LONGEST = 120  # characters of a setting in a message
_HEAVISIDE = "the Heaviside step"
CONSTRAINT = "constraint of "  # in front of the name of a parameter
_GRID = (-3.7, -1.0, -0.6, -1e-3, 0.0, 1e-3, 0.6, 1.0, 3.7)


def plain(name: str) -> str:
    """Remove the segments that wrappers of submodules add to a name or path."""
    return ".".join(part for part in name.split(".") if part not in _SEGMENTS)


def describe(model: nn.Module) -> dict[str, Parts]:
    """Describe a model's neuron layers, and all its modules, in types that JSON has."""
    return {"layers": _describe_layers(model), "modules": _describe_modules(model)}


def _describe_layers(model: nn.Module) -> Parts:
    # The class of the step names the equations: a wrapper is the LeakyIntegrator it configures.
    described: dict[str, dict[str, Any]] = {}
    for path, layer in named_neurons(model):
        if isinstance(layer, LockedDropout):
            continue
        # Options that are functions or tensors have no text to compare: surrogates are among them.
        options = {name: getattr(layer, name) for name in layer._options if name not in _LEFT_OUT}
        options = {k: v for k, v in options.items() if isinstance(v, _TEXTS)}
        ranks = {raw.removeprefix("raw_"): getattr(layer, raw).ndim for raw in layer._raw_names}
        kinds = [kind.__name__ for kind in type(layer).__mro__ if "step" in vars(kind)]
        described[plain(path)] = {
            "call": repr(layer).partition("\n")[0],
            "equations": kinds[0] if kinds else type(layer).__name__,
            "num_neurons": layer.num_neurons,
            "dim": layer.dim,
            "states": list(layer.active_states),
            "parameters": ranks,
            "options": {k: v for k, v in options.items() if _ADDED_OPTIONS.get(k, _MISSING) != v},
        }
    return described


def layer_differences(file: Parts, model: Parts, strict: bool) -> list[str]:
    """List the differences between layers that change outputs, with ``strict`` of any layer."""
    found = _only_one_has("layer", "call", file, model) if strict else []
    for path in (path for path in file if path in model):
        if reasons := list(_mismatches(file[path], model[path])):
            calls = f"the file has {file[path]['call']}, the model {model[path]['call']}"
            found.append(f"{_title('layer', path)}: {calls}; {', '.join(reasons)}")
    return found


def _title(what: str, path: str) -> str:
    return f"{what} {path!r}" if path else f"the {what}"


def _only_one_has(what: str, key: str, file: Parts, model: Parts) -> list[str]:
    sides = (("the file", file, model), ("the model", model, file))
    return [
        f"{_title(what, path)}: only {owner} has it, {own[path][key]}"
        for owner, own, other in sides
        for path in own
        if path not in other
    ]


def _mismatches(file: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[str]:
    for part in ("equations", "num_neurons", "dim", "states"):
        if file[part] != model[part]:
            yield f"{part}: {file[part]!r} in the file, {model[part]!r} in the model"
            if part == "equations":
                return  # another neuron, with other parameters and options throughout
    for kind, rank, absent in (("parameters", "rank of ", "absent"), ("options", "", "unset")):
        for name in {**file[kind], **model[kind]}:
            # An option may be None: a missing one needs a default that JSON cannot hold.
            if file[kind].get(name, _MISSING) != model[kind].get(name, _MISSING):
                sides = (file[kind], model[kind])
                saved, built = (repr(each[name]) if name in each else absent for each in sides)
                yield f"{rank}{name}: {saved} in the file, {built} in the model"


def _describe_modules(model: nn.Module) -> Parts:
    """Describe every module that can change an output: its class, and what it keeps of its call."""
    described: dict[str, dict[str, Any]] = {}
    surrogates: list[str] = []
    for root, hidden in [("", model), *hidden_modules(model)]:
        # A module may be used under several names, in another model by several modules.
        for path, module in hidden.named_modules(prefix=root, remove_duplicate=False):
            kind: type = type(module)
            neutral = kind in _NEUTRAL or kind.__module__ in _NEUTRAL_FILES
            neutral |= kind is nn.Sequential and not module._modules
            if neutral or f"{path}.".startswith(tuple(surrogates)):
                continue
            kind = next(k for k in kind.__mro__ if not k.__module__.startswith(_GENERATED))
            name = "BatchNorm" if kind in _BATCH_NORMS else kind.__name__
            name = _LIBRARIES.get(kind.__module__.partition(".")[0], "") + name
            text = dict(_settings(module))
            if isinstance(module, SequenceLayer):
                name = "tt.Neuron"  # _describe_layers names the class with the equations
                # Surrogates that are modules change no output, nor does what they hold.
                steps = [each for each in module._options if text.get(each) == _HEAVISIDE]
                surrogates += [f"{path}.{each}.".removeprefix(".") for each in steps]
            # The module in a wrapper comes after it, and has its path.
            described[plain(path)] = {"class": name, **text}
    return described


def module_differences(file: Parts, model: Parts, strict: bool, loaded: Set[str]) -> list[str]:
    """List the modules that would compute something else with the values of the file.

    With ``strict`` every class must be the same, and a module that only one of them has is a
    difference too; else settings must, and classes of libraries at the paths ``loaded``, which
    receive values.
    """
    found = _only_one_has("module", "class", file, model) if strict else []
    for path in (path for path in file if path in model):
        name, saved, built = _title("module", path), file[path], model[path]
        if saved["class"] != built["class"]:
            from_libraries = "." in saved["class"] and "." in built["class"]
            if strict or (from_libraries and path in loaded):
                found.append(f"{name}: {saved['class']} in the file, {built['class']} in the model")
            continue
        for key, texts in {k: (saved[k], built[k]) for k in saved if k in built}.items():
            # a decay keeps its value whatever its bound
            one, other = (re.sub(r"^sigmoid from .*", "sigmoid", text) for text in texts)
            if one != other:
                short = [shorten(text, _LONGEST) for text in (one, other)]
                title = f"{name}, {saved['class']}: {key}"
                found.append(f"{title}: {short[0]} in the file, {short[1]} in the model")
    return found


def _settings(module: nn.Module) -> Iterator[tuple[str, str]]:
    if isinstance(module, SequenceLayer):
        for name, constraint in module.constraints.items():
            yield f"{CONSTRAINT}{name}", constraint.name
        # _describe_layers has the options that are numbers, flags or words.
        options = {name: getattr(module, name) for name in module._options}
        values = {k: v for k, v in options.items() if callable(v) or isinstance(v, (list, tuple))}
    else:
        kept, kind = vars(module), cast(Any, type(module))
        values = {name: kept[name] for name in _arguments(kind) if name in kept}
    for name, value in values.items():
        # LayerNorm((4, 4)) is another than LayerNorm(4)
        text = f"({', '.join(map(str, value))})" if name == "normalized_shape" else _text(value)
        if text is not None:
            yield name, text


@lru_cache(maxsize=1024)
def _arguments(kind: Any) -> tuple[str, ...]:
    """Return the constructor arguments of a class and its bases in PyTorch or this package."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        if base.__module__.startswith(("tracetorch.", "torch.")) and "__init__" in vars(base):
            names |= dict.fromkeys(inspect.signature(vars(base)["__init__"]).parameters)
    return tuple(name for name in names if name not in _IGNORED)


def _text(value: object) -> str | None:
    """Write a setting so that equal ones have equal texts: 2 and (2, 2), 1 and 1.0."""
    if is_dataclass(value) and not callable(value):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        items = [_text(item) for item in value]
        if None in items:
            return None
        numbers = all(isinstance(item, (int, float)) for item in value)
        if numbers and len(set(items)) == 1:
            return items[0]
        return f"({', '.join(map(str, items))})"
    if isinstance(value, float) and value.is_integer():
        return repr(int(value))
    if isinstance(value, _TEXTS):
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
        is_trained = values.requires_grad or getattr(function, "state_dict", dict)()
        if torch.equal(values.detach().float(), (u > 0).float()):
            return _HEAVISIDE
        if not is_trained:
            points = ", ".join(f"{point:g}" for point in _GRID)
            return f"{', '.join(f'{value:.3g}' for value in values.tolist())} at {points}"
    except Exception:  # whatever a function that takes other arguments raises
        pass
    return str(getattr(function, "__name__", type(function).__name__))
