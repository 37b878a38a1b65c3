"""Give a model the values of a file, if it would compute with them what was saved."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tracetorch.checkpoint.layers import described, differences
from tracetorch.checkpoint.read import read
from tracetorch.checkpoint.tensors import kept_tensors, load_tensors, shared_names
from tracetorch.core.checks import check_module
from tracetorch.snn.states import set_states

_MANY = 8


@dataclass(frozen=True)
class Loaded:
    """What :func:`tt.load` did.

    Args:
        version: of traceTorch, that wrote the file; ``None`` where another wrote it.
        missing: names that the model has and the file has not; they keep their values.
        unexpected: names that the file has and the model has not.

    Example:
        >>> Loaded("0.10.0").missing
        ()
    """

    version: str | None
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    strict: bool = True,
    states: bool = False,
) -> Loaded:
    """Give ``model`` the parameters and buffers of a file.

    It reads what :func:`tt.save` writes, any safetensors file, and a ``state_dict`` that
    ``torch.save`` wrote, one of traceTorch 0.9.2 too; pickled code never runs. A file of
    ``tt.save`` tells what its layers are: where the model has another reset, a part more or less,
    another rank, nothing is loaded. Surrogates, ``detach_reset`` and what is learnable may differ.
    The states of the model stay as they are, unless ``states`` asks for those of the file; then a
    layer that the file knows no state of starts from rest. Files of others tell names and shapes
    alone: whether a layer there averaged or reset as this one does, only you can know.

    Whatever is raised, the model is as before. Values that are NaN are loaded, with a warning.

    Args:
        path: the file.
        model: any module.
        strict: names and layers must be the same in both; if false, what only one of them has is
            passed over, and told. Layers and tensors that both have must agree in any case.
        states: take the states of the file too.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``model`` is not a module, or keeps something other than tensors; ``strict`` or
            ``states`` is not a bool.
        ValueError: the file is damaged; its layers, names, shapes or dtypes are not the model's; it
            holds no states; the model is on the device ``meta``, which keeps no values.

    Example:
        >>> import tempfile
        >>> from tracetorch.checkpoint.save import save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(LIF(3, beta=0.5), f"{folder}/lif.safetensors")
        ...     layer = LIF(3)
        ...     _ = load(f"{folder}/lif.safetensors", layer)
        >>> [round(decay, 4) for decay in layer.beta.tolist()]
        [0.5, 0.5, 0.5]
    """
    check_module(model)
    for option, given in (("strict", strict), ("states", states)):
        if not isinstance(given, bool):
            raise TypeError(f"{option} must be True or False, got {given!r}.")
    told = f"{os.fspath(path)!r} does not fit {type(model).__name__}"
    values, active_states, header = read(path)
    if header is not None:
        unlike = differences(header.layers, described(model), strict)
        if unlike:
            raise ValueError(f"{told}. {_listed(unlike)}. {_WAY_OUT}")
    if states and (header is None or header.states is None):
        raise ValueError(
            f"{os.fspath(path)!r} holds no states. Save with tt.save(model, path, states=True), or "
            "load without them."
        )
    here = kept_tensors(model)
    missing = tuple(name for name in here if name not in values)
    unexpected = tuple(name for name in values if name not in here)
    if strict and (missing or unexpected):
        raise ValueError(f"{told}. {_listed(_names(here, missing, unexpected))}. {_WAY_OUT}")
    both = {name: value for name, value in values.items() if name in here}
    unfit = _unfit(here, both)
    if unfit:
        raise ValueError(f"{told}. {_listed(unfit)}.")
    nan = [name for name, value in both.items() if bool(torch.isnan(value).any())]

    before = {name: here[name].detach().clone() for name in both}
    try:
        load_tensors(model, both)
        if states:
            set_states(model, active_states)
    except BaseException:
        with torch.no_grad():
            for name, value in before.items():
                here[name].copy_(value)
        raise
    if nan:
        warnings.warn(
            f"{os.fspath(path)!r} holds NaN in {_listed(nan)}: training had diverged when it was "
            "saved, it seems.",
            stacklevel=2,
        )
    return Loaded(None if header is None else header.version, missing, unexpected)


_WAY_OUT = "Build the model as it was saved, or load what fits with strict=False."


def _names(
    here: Mapping[str, Tensor], missing: tuple[str, ...], unexpected: tuple[str, ...]
) -> list[str]:
    found = [f"the file lacks {name!r}" for name in missing]
    for name in unexpected:
        near = difflib.get_close_matches(name, missing, n=1)
        hint = f", perhaps what the model calls {near[0]!r}" if near else ""
        found.append(f"only the file has {name!r}{hint}")
    return found


def _unfit(here: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> list[str]:
    """Tensors of another shape or dtype, and two values for what is one tensor in the model."""
    found: list[str] = []
    for name, value in values.items():
        if here[name].is_meta:
            found.append(
                f"{name!r} is on the device meta in the model, where it keeps no values; call "
                'model.to_empty(device="cpu") first'
            )
        elif value.shape != here[name].shape:
            found.append(
                f"{name!r} has shape {list(value.shape)} in the file, {list(here[name].shape)} in "
                "the model"
            )
        elif value.dtype != here[name].dtype:
            found.append(
                f"{name!r} is {value.dtype} in the file, {here[name].dtype} in the model; convert "
                "the model with model.to(dtype), load, and convert it back"
            )
    for name, first in shared_names(here).items():
        one, other = values.get(name), values.get(first)
        if one is not None and other is not None and not _same(one, other):
            found.append(
                f"{first!r} and {name!r} are one tensor in the model, the file has two values"
            )
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    nan = one.isnan() & other.isnan()
    return bool(((one == other) | nan).all())


def _listed(found: list[str]) -> str:
    more = f" and {len(found) - _MANY} more" if len(found) > _MANY else ""
    return "; ".join(found[:_MANY]) + more
