"""Write a model's parameters, and what its layers are."""

from __future__ import annotations

import os

from torch import nn

from tracetorch.checkpoint.header import KEY, STATE, SUM, Header, checksum
from tracetorch.checkpoint.layers import described
from tracetorch.checkpoint.tensors import kept_tensors, shared_names
from tracetorch.core.checks import check_module
from tracetorch.core.files import atomic_replace
from tracetorch.core.version import __version__
from tracetorch.snn.states import get_states


def save(model: nn.Module, path: str | os.PathLike[str], *, states: bool = False) -> None:
    """Write the parameters and buffers of ``model`` as safetensors, and what its layers are.

    The names are those of ``model.state_dict()``; modules in plain lists are saved too, by their
    path. The header's metadata holds the version of traceTorch and, for every neuron layer, its
    equations, sizes, parts and options: :func:`tt.load` gives the values to no layer that would
    compute something else with them. A sum over everything finds damage. A tensor that stands at
    several names is written once. What is not finite is written as it is.

    Args:
        model: any module.
        path: the file; replaced only when the new one is whole.
        states: write the live states too, so that a stream can be resumed.

    Raises:
        TypeError: ``model`` is not a module, or keeps something other than tensors.
        ValueError: a tensor has no name of its own, or no values.

    Example:
        >>> import tempfile
        >>> from tracetorch.checkpoint.load import load
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(nn.Sequential(nn.Linear(4, 3), LIF(3)), f"{folder}/net.safetensors")
        ...     load(f"{folder}/net.safetensors", nn.Sequential(nn.Linear(4, 3), LIF(3))).missing
        ()
    """
    from safetensors.torch import save_file

    check_module(model)
    kept = kept_tensors(model)
    shared = shared_names(kept)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in kept.items()
        if name not in shared
    }
    # what overlaps another in part is two tensors in the file
    apart = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    if len(apart) < len(tensors):
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    live = get_states(model) if states else None
    for name, state in (live or {}).items():
        tensors[STATE + name] = state.cpu().contiguous()
    header = Header(
        __version__, described(model), shared, None if live is None else list(live)
    ).dumps()
    with atomic_replace(path) as unfinished:
        save_file(tensors, unfinished, {KEY: header, SUM: checksum(header, tensors)})
