"""Save a model's parameters and a description of its layers."""

from __future__ import annotations

import os
import warnings

from torch import nn

from tracetorch.checkpoint.header import CHECKSUM_KEY, HEADER_KEY, STATE_PREFIX, Header, checksum
from tracetorch.checkpoint.layers import describe_layers
from tracetorch.checkpoint.modules import describe_modules
from tracetorch.checkpoint.tensors import named_tensors, renamed, shared_names, unwrapped
from tracetorch.checkpoint.training import Stateful, encoded
from tracetorch.core.checks import check_flag, check_module, check_unsharded
from tracetorch.core.files import atomic_replace, save_safetensors
from tracetorch.core.version import __version__
from tracetorch.snn.states import get_states


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    states: bool = False,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    scaler: Stateful | None = None,
    rng: bool = False,
    progress: object = None,
) -> None:
    """Save the parameters and buffers of ``model``, and its modules' settings, as safetensors.

    The names are those of ``model.state_dict()``, without what ``torch.compile`` and
    DistributedDataParallel add; modules in plain lists are saved too, by their path. The header
    holds the version of traceTorch; for every neuron layer its equations, sizes, parts, options,
    constraints and the forward of its spike functions; for every other module its class and, where
    PyTorch or traceTorch defines it, its settings: :func:`tt.load` refuses a model that differs in
    them. A checksum detects damage. A tensor with several names is written once. NaN and infinite
    values are written like all others, with a warning where a state is NaN.

    With ``optimizer=``, ``scheduler=`` and ``rng=True`` a training goes on from the file exactly as
    it would have gone on, in the middle of an epoch too; ``progress=`` says where that was. Of an
    online learner give the learner itself as the model, with ``states=True``: its traces are
    states. The file holds no code.

    Args:
        model: any module.
        path: the file; replaced only when the new one is complete.
        states: whether to write the current states too, so that a stream can be resumed.
        optimizer: whose state is written too, with the names of its parameters.
        scheduler: of the learning rate, whose state is written too.
        scaler: of gradients, for mixed precision, whose state is written too.
        rng: whether to write the state of PyTorch's, NumPy's and Python's random numbers too.
        progress: numbers and text, in dicts and lists, that :func:`tt.load` returns: the epoch and
            the batch, say.

    Raises:
        TypeError: ``model`` is not a module, its ``state_dict`` holds more than tensors, or that of
            an optimizer or scheduler more than tensors, numbers and text.
        ValueError: a tensor has no unique name; the optimizer has several parameters that the model
            does not have.

    Example:
        >>> import tempfile
        >>> from tracetorch.checkpoint.load import load
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(nn.Sequential(nn.Linear(4, 3), LIF(3)), f"{folder}/net.safetensors")
        ...     load(f"{folder}/net.safetensors", nn.Sequential(nn.Linear(4, 3), LIF(3))).missing
        ()
    """
    check_module(model)
    check_unsharded(model, "tt.save")
    check_flag("rng", rng)
    model = unwrapped(model)
    given = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    parts = {name: part for name, part in given.items() if part is not None}
    training, training_tensors = encoded(model, parts, rng, progress)
    named = named_tensors(model)
    shared = shared_names(named)
    own = {name: tensor for name, tensor in named.items() if name not in shared}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}
    # safetensors refuses tensors that overlap in part: each becomes a tensor of its own.
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    if len(storages) < len(tensors):
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    current = renamed(get_states(model)) if states else None
    for name, state in (current or {}).items():
        tensors[STATE_PREFIX + name] = state.cpu().contiguous()
    nan = [name for name, state in (current or {}).items() if bool(state.isnan().any())]
    if nan:
        warnings.warn(
            f"{', '.join(map(repr, nan))} of the states saved to {os.fspath(path)!r} hold NaN, and "
            "what goes on from there begins with it. Call zero_states() before.",
            stacklevel=2,
        )
    tensors |= training_tensors
    header = Header(
        __version__, renamed(describe_layers(model)), shared,
        None if current is None else list(current), describe_modules(model),
        training if training["values"] else None,
    ).dumps()  # fmt: skip
    metadata = {HEADER_KEY: header, CHECKSUM_KEY: checksum(header, tensors)}
    with atomic_replace(path) as unfinished:
        save_safetensors(tensors, unfinished, metadata)
