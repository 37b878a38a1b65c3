"""Save a model's parameters, its states and a description of its modules."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tracetorch.checkpoint.descriptions import describe, plain
from tracetorch.checkpoint.read import CHECKSUM_KEY, FORMAT, HEADER_KEY, STATE_PREFIX, checksum
from tracetorch.core import __version__
from tracetorch.core.checks import check_flag, check_module, check_unsharded
from tracetorch.core.files import atomic_replace
from tracetorch.core.walk import hidden_modules, join_path
from tracetorch.snn.states import get_states


def save(model: nn.Module, path: str | os.PathLike[str], *, states: bool = False) -> None:
    """Save the parameters and buffers of ``model``, and what its modules are, as safetensors.

    The names are those of ``model.state_dict()``, without what ``torch.compile`` and
    DistributedDataParallel add; modules in plain lists are saved too, by their path. The header
    holds the version of traceTorch; for every neuron layer its equations, sizes, parts, options,
    constraints and the forward of its spike functions; for every other module its class, and of
    those of this package the settings: :func:`tt.load` refuses a model that differs in them. A
    checksum detects damage. A tensor with several names is written once. NaN and infinite values
    are written like all others, with a warning where a state is NaN. The file holds no code.

    An optimizer, a scheduler and random numbers are saved with ``torch.save``, beside the model's
    ``state_dict`` and :func:`tt.get_states`: a training resumes from one file so.

    Args:
        model: any module.
        path: the file; replaced only when the new one is complete.
        states: whether to write the current states too, so that a stream can be resumed.

    Raises:
        TypeError: ``model`` is not a module, or its ``state_dict`` holds more than tensors.
        ValueError: a tensor has no unique name.

    Example:
        >>> import tempfile
        >>> from tracetorch.checkpoint.load import load
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(nn.Sequential(nn.Linear(4, 3), LIF(3)), f"{folder}/net.safetensors")
        ...     load(f"{folder}/net.safetensors", nn.Sequential(nn.Linear(4, 3), LIF(3))).missing
        ()
    """
    check_flag("states", states)
    check_module(model)
    check_unsharded(model, "tt.save")
    model = unwrapped(model)
    named = named_tensors(model)
    shared = shared_names(named)
    own = {name: tensor for name, tensor in named.items() if name not in shared}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}
    # safetensors refuses tensors that overlap in part: each becomes a tensor of its own.
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    if len(storages) < len(tensors):
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    current = {plain(n): t for n, t in get_states(model).items()} if states else None
    for name, state in (current or {}).items():
        tensors[STATE_PREFIX + name] = state.cpu().contiguous()
    if nan := [name for name, state in (current or {}).items() if bool(state.isnan().any())]:
        warnings.warn(
            f"{', '.join(map(repr, nan))} of the states saved to {os.fspath(path)!r} hold NaN, and "
            "what goes on from there begins with it. Call zero_states() before.",
            stacklevel=2,
        )
    names = None if current is None else list(current)
    about = {"format": FORMAT, "version": __version__, "shared": shared, "states": names}
    header = json.dumps(about | describe(model))
    metadata = {HEADER_KEY: header, CHECKSUM_KEY: checksum(header, tensors)}
    from safetensors.torch import save as serialized  # save_file: a full disk has its own error

    with atomic_replace(path) as unfinished:
        unfinished.write_bytes(serialized(tensors, metadata))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile`` and data parallel wrappers."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = cast(nn.Module, model.module)
        elif "_orig_mod" in model._modules:
            model = cast(nn.Module, model._modules["_orig_mod"])
        else:
            return model


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the ``state_dict`` and unregistered modules' tensors, under names without wrappers."""
    named: dict[str, Tensor] = {}
    for path, module in [("", model), *hidden_modules(model)]:
        # The walk writes the position in a set in braces.
        if "{" in path:
            advice = "its tensors cannot be named. Hold the modules in a list or a dict."
            raise ValueError(f"{path!r} is a module in a set, which has no order: {advice}")
        for name, value in module.state_dict().items():
            full = plain(join_path(path, name))
            if not isinstance(value, Tensor):
                what = f"a {type(value).__name__}, not a tensor. Keep it out of the state_dict"
                raise TypeError(f"{full!r} in the state_dict is {what} (get_extra_state).")
            if full in named:
                advice = "Give the modules' containers keys that differ, and without dots."
                raise ValueError(f"two tensors would be called {full!r}. {advice}")
            named[full] = value
    return named


def shared_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Map the further names of every shared tensor to its first name."""
    seen: dict[tuple[object, ...], str] = {}
    shared: dict[str, str] = {}
    for name, tensor in tensors.items():
        # the same elements of one memory, in the same order
        layout = (tensor.shape, tensor.stride(), tensor.dtype)
        first = seen.setdefault((tensor.device, tensor.data_ptr(), *layout), name)
        if first != name and tensor.numel():
            shared[name] = first
    return shared
