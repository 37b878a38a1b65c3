"""Check arguments: raise ``TypeError`` or ``ValueError`` with what came and what is allowed."""

from __future__ import annotations

import difflib
import math
import numbers
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tracetorch.core.walk import join_path, named_modules, named_parameters

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_flag(name: str, value: object) -> bool:
    """Return ``value``; raise ``TypeError`` unless it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return value


def check_integer(name: str, value: object) -> int:
    """Return ``value`` as an int; raise ``TypeError`` for anything but an integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    return int(value)


def check_integers(name: str, values: object) -> Tensor:
    """Return a tensor of integers, detached; raise ``TypeError`` for others, and for a mask."""
    if not isinstance(values, Tensor) or values.dtype not in INTEGERS:
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        ways = "Convert it by .long(), a mask by .nonzero().squeeze(1)."
        raise TypeError(f"{name} must be a tensor of integers, got {got}. {ways}")
    return values.detach()


def check_count(name: str, value: object) -> int:
    """Return ``value`` as an int of at least 1; raise ``TypeError`` or ``ValueError``."""
    count = check_integer(name, value)
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}.")
    return count


def check_number(name: str, value: object, *, unit: str = "") -> float:
    """Return ``value`` as a float; raise ``TypeError``, with the unit, for a bool and others."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        kind = f"a number of {unit}" if unit else "a number"
        raise TypeError(f"{name} must be {kind}, got {value!r}.")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a floating-point number.") from None


def check_finite(name: str, value: object, *, unit: str = "") -> float:
    """Return ``value`` as a float that is neither infinite nor NaN; raise otherwise."""
    number = check_number(name, value, unit=unit)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value}.")
    return number


def is_finite(x: Tensor) -> bool:
    """Whether all values are finite; the sum of others is not, and quicker to have."""
    x = x.detach()
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())


def check_nonnegative(name: str, value: object, *, unit: str = "") -> float:
    """Return ``value`` as a finite float that is not negative; raise otherwise."""
    number = check_number(name, value, unit=unit)
    # NaN fails every comparison, and so this one too.
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name} must be finite and not negative, got {value}.")
    return number


def check_positive(name: str, value: object, *, unit: str = "") -> float:
    """Return ``value`` as a finite float above 0; raise otherwise."""
    number = check_number(name, value, unit=unit)
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}.")
    return number


def check_share(name: str, value: object) -> float:
    """Return ``value`` as a float in [0, 1], a share or a probability; raise otherwise."""
    number = check_number(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}.")
    return number


def check_choice(name: str, value: Any, allowed: Sequence[object]) -> Any:
    """Return ``value``; raise ``ValueError`` unless it is one of those allowed."""
    if value not in allowed:
        *others, last = map(repr, allowed)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {value!r}.")
    return value


def check_each(name: str, values: Tensor, count: int, what: str) -> None:
    """Raise ``ValueError`` unless values are one number, or one for each of a ``count``."""
    if values.shape not in ((), (count,)):
        raise ValueError(
            f"{name} must be one number, or [{count}], one for each {what}, got shape "
            f"{list(values.shape)}."
        )


def check_module(module: object) -> None:
    """Raise ``TypeError`` unless ``module`` is an ``nn.Module``."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(module).__name__}.")


def check_has_values(model: nn.Module) -> None:
    """Raise ``ValueError`` where a parameter is lazy or on the meta device."""
    for name, parameter in named_parameters(model).items():
        if is_lazy(parameter) or parameter.is_meta:
            raise ValueError(
                f"{name!r} has no values yet. Run the model once before, or load its weights."
            )


def is_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to this very module."""
    # no module can be of a class that was never imported
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def check_unsharded(model: nn.Module, by: str) -> None:
    """Raise ``ValueError`` where this process may hold a part of a tensor, and ``by`` needs all."""
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is None and "torch.distributed.fsdp" not in sys.modules:
        return
    for path, module in named_modules(model):
        registered = (*module._parameters.items(), *module._buffers.items())
        paths = [
            join_path(path, name)
            for name, tensor in registered
            if tensors and isinstance(tensor, tensors.DTensor)
        ]
        # between two passes the parameters of FSDP2 may be whole
        for part in (*paths, *([path or type(module).__name__] if is_sharded(module) else ())):
            raise ValueError(
                f"{part!r} is sharded (DTensor, FSDP2): this process holds a part of it, and {by} "
                "needs all. Give a model that is not sharded; on every process, "
                "get_model_state_dict of torch.distributed.checkpoint.state_dict gathers the "
                "values for it, and set_model_state_dict spreads them: "
                "options=StateDictOptions(full_state_dict=True)."
            )


def suggestion(name: object, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest allowed name, ``""`` where none is near."""
    near = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def require(*packages: str, extra: str, by: str) -> None:
    """Check that packages are installed, by import name: ``extra`` brings what ``by`` needs."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{by} needs {' and '.join(missing)}, from the extra '{extra}'. Run: pip install "
            f"{' '.join(missing)}; or, in a clone of traceTorch: pip install -e '.[{extra}]'"
        )
