"""Load a checkpoint into a model whose modules match those that were saved."""

from __future__ import annotations

import contextlib
import copy
import difflib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.checkpoint.header import Header
from tracetorch.checkpoint.layers import describe_layers, differences
from tracetorch.checkpoint.modules import describe_modules
from tracetorch.checkpoint.modules import differences as module_differences
from tracetorch.checkpoint.read import read
from tracetorch.checkpoint.tensors import (
    Constraints,
    file_rename,
    load_tensors,
    named_tensors,
    optional_names,
    plain,
    renamed,
    shared_names,
    unwrapped,
)
from tracetorch.checkpoint.training import Stateful, check_part, random_state, set_random_state
from tracetorch.core.checks import RefusedError, check_flag, check_module, check_unsharded
from tracetorch.core.snapshot import restored_on_error
from tracetorch.core.walk import join_path
from tracetorch.snn.parameters import is_decay
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.states import named_neurons, set_states

_MOST_LISTED = 8  # differences in one error message


@dataclass(frozen=True)
class Loaded:
    """Result of :func:`tt.load`: version of the file, missing and unexpected names, progress.

    Args:
        version: version of traceTorch that wrote the file; ``None`` for any other writer.
        missing: names that only the model has; their values are kept.
        unexpected: names that only the file has.
        progress: what the file says of it; ``None`` for nothing.

    Example:
        >>> Loaded("0.10.0").missing
        ()
    """

    version: str | None
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    progress: Any = None


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    strict: bool = True,
    states: bool = False,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    scaler: Stateful | None = None,
    rng: bool = False,
) -> Loaded:
    """Load the parameters and buffers of a file into ``model``.

    It reads what :func:`tt.save` writes, any safetensors file, and a ``state_dict`` that
    ``torch.save`` wrote, one of traceTorch 0.9.2 too; pickled code never runs. A file of
    ``tt.save`` describes its modules: where a neuron layer of the model has another reset, a part
    more or less, another rank, constraint or spike function, where a module of PyTorch is of
    another class or has another setting (``stride``, ``padding_mode``, ``num_groups``), nothing is
    loaded. What changes no output in evaluation mode may differ: surrogates, ``detach_reset``, what
    is learnable, ``inplace``, ``momentum``, ``Dropout``. So may ``torch.compile`` and
    DistributedDataParallel. Of your own modules the name of the class is compared, not the code; of
    your own spike functions some values.

    The states of the model are kept, unless ``states=True`` loads those of the file; a layer
    without states in the file then starts from rest. Other files hold names and shapes alone:
    what their modules computed cannot be checked. Those of older versions of traceTorch describe
    neuron layers only.

    Where an error is raised, the model is unchanged. NaN values are loaded, with a warning.

    Args:
        path: the file.
        model: any module.
        strict: whether names and modules must be the same in both; if false, names that only one of
            them has are skipped and returned, and modules that receive no value, or that you
            defined, may be of another class. Layers, settings and tensors that both have must
            always agree, and a file without a name of the model is refused.
        states: whether to load the states of the file too.
        optimizer: into which its state is loaded, of one with the same parameters in the same
            groups; make it, and the scheduler, as for a new training.
        scheduler: of the learning rate, into which its state is loaded.
        scaler: of gradients, into which its state is loaded.
        rng: whether to set PyTorch's, NumPy's and Python's random numbers to those of the file.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``model`` is not a module, or its ``state_dict`` holds more than tensors;
            ``strict``, ``states`` or ``rng`` is not a bool.
        ValueError: the file is damaged; its modules, names, shapes or dtypes are not the model's;
            it holds no states, or not what is to be loaded of a training; the optimizer or
            scheduler is of another class, or has other parameters; the model is on the device
            ``meta``, which keeps no values.

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
    check_unsharded(model, "tt.load", loads=True)
    for name, flag in (("strict", strict), ("states", states), ("rng", rng)):
        check_flag(name, flag)
    model = unwrapped(model)
    given = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    parts = {name: part for name, part in given.items() if part is not None}
    values, file_states, header, training = read(path)
    targets = named_tensors(model)
    # A file that describes its modules was written without wrappers.
    is_plain = header is not None and header.modules is not None
    rename = str if is_plain else file_rename(values, targets)
    values = renamed(values, rename)
    # settings that files of earlier versions lack, of modules that they have
    owners = {name.rpartition(".")[0] for name in values}
    known = [name for name in optional_names(model) if name.rpartition(".")[0] in owners]
    values = {**{name: targets[name] for name in known}, **values}
    # Every check comes before the first value is written.
    mismatch = f"{os.fspath(path)!r} does not fit {type(model).__name__}"
    if targets and {*values} == {f"model.{name}" for name in targets}:
        raise ValueError(
            f"{mismatch}. The file is of an online learner: load it with tt.load(path, "
            "tt.online(model)), or save learner.model."
        )
    found = _mismatches(values, targets, header, rename, model, strict)
    if found:
        lenient = strict and not _mismatches(values, targets, header, rename, model, False)
        advice = ", or load what fits with strict=False" if lenient else ""
        raise ValueError(
            f"{mismatch}. {_join_first(found)}. Build the model as the file describes it{advice}."
        )
    _check_training(path, header, training, model, parts, rng, states)
    matching = {name: value for name, value in values.items() if name in targets}
    saved = (header and header.modules) or {}
    nan = [name for name, value in matching.items() if bool(torch.isnan(value).any())]

    with _restored_on_failure(model, {name: targets[name] for name in matching}, parts, rng):
        try:
            load_tensors(model, matching, _decays(model, saved))
        except RefusedError as error:
            raise ValueError(f"{mismatch}. {error}") from error
        outside = _out_of_bounds(model, saved)
        if outside:
            raise ValueError(f"{mismatch}. {_join_first(outside)}.")
        for name, part in parts.items():
            part.load_state_dict(training[name])
        if rng:
            set_random_state(training["rng"])
        if states:  # last: what has failed has changed none
            paths = {plain(path): path for path, _ in named_neurons(model)}
            set_states(model, _by_path(renamed(file_states, rename), paths))
    if nan:
        warnings.warn(
            f"{os.fspath(path)!r} holds NaN in {_join_first(nan)}: training had diverged when it "
            "was saved, it seems.",
            stacklevel=2,
        )
    return Loaded(
        None if header is None else header.version,
        tuple(name for name in targets if name not in values),
        tuple(name for name in values if name not in targets),
        training.get("progress"),
    )


def _check_training(
    path: str | os.PathLike[str],
    header: Header | None,
    training: Mapping[str, Any],
    model: nn.Module,
    parts: Mapping[str, Stateful],
    rng: bool,
    states: bool,
) -> None:
    """Raise ``ValueError`` unless the file holds what is wanted of a training, and it fits."""
    lacking = [name for name in (*parts, *["rng"] * rng) if name not in training]
    if states and (header is None or header.states is None):
        lacking.append("states")
    if lacking:
        raise ValueError(
            f"{os.fspath(path)!r} holds no {lacking[0]}. Save with tt.save(model, path, "
            f"{lacking[0]}={lacking[0] if lacking[0] in parts else True}), or load without."
        )
    try:
        for name, part in parts.items():
            check_part((header and header.training) or {}, name, model, part)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} does not fit: {error}.") from None


def _mismatches(
    values: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    header: Header | None,
    rename: Callable[[str], str],
    model: nn.Module,
    strict: bool,
) -> list[str]:
    """List in what a file does not fit a model: of the first kind, others may follow from it."""
    if header is not None:
        layers = renamed(header.layers, rename), renamed(describe_layers(model))
        unlike = differences(*layers, strict)
        if unlike:
            return unlike
    missing = [name for name in targets if name not in values]
    found = [f"the file lacks {name!r}" for name in missing]
    matching = {name: value for name, value in values.items() if name in targets}
    for name in (name for name in values if name not in targets):
        near = difflib.get_close_matches(name, missing, n=1)
        hint = f", perhaps what the model calls {near[0]!r}" if near else ""
        found.append(f"only the file has {name!r}{hint}")
    if strict and found:
        return found
    if targets and values and not matching:
        nothing = "none of its names is one of the model's, so that strict=False would load nothing"
        return [nothing, *found]
    misfits = _misfits(targets, matching)
    # shapes before settings: they tell sizes apart better
    if misfits or header is None or header.modules is None:
        return misfits
    receiving = {name.rpartition(".")[0] for name in matching}
    return module_differences(header.modules, describe_modules(model), strict, receiving)


@contextlib.contextmanager
def _restored_on_failure(
    model: nn.Module, tensors: Mapping[str, Tensor], parts: Mapping[str, Stateful], rng: bool
) -> Iterator[None]:
    """Give all back what it was where the block fails: hooks and states can, in the middle."""
    constraints = {layer: dict(layer.constraints) for _, layer in named_neurons(model)}
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    numbers = random_state() if rng else None
    try:
        with restored_on_error(tensors.values()):
            yield
    except BaseException:
        # whoever has raised may do so again
        for name, part in parts.items():
            with contextlib.suppress(Exception):
                part.load_state_dict(before[name])
        if numbers is not None:
            set_random_state(numbers)
        # some layers read a buffer when it is loaded
        with contextlib.suppress(Exception):
            copies = {name: each.detach().clone() for name, each in tensors.items()}
            load_tensors(model, copies, _decays(model, describe_modules(model)))
        for layer, kept in constraints.items():  # loading may have lowered bounds
            for name, constraint in kept.items():
                layer._declared.constrain(name, constraint)
        raise


def _by_path(states: Mapping[str, Tensor], paths: Mapping[str, str]) -> dict[str, Tensor]:
    """Name states as :func:`set_states` does, with what wrappers in the model add."""
    split = [(*name.rpartition("."), value) for name, value in states.items()]
    return {join_path(paths.get(layer, layer), state): value for layer, _, state, value in split}


def _misfits(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> list[str]:
    """List tensors of another shape or dtype, and shared tensors with two values in the file."""
    found: list[str] = []
    alike: dict[str, list[str]] = {}
    """Names by what is said of them all."""
    for name, value in values.items():
        target = targets[name]
        if target.is_meta:
            alike.setdefault(
                "on the device meta in the model, which keeps no values; call "
                'model.to_empty(device="cpu") first',
                [],
            ).append(name)
        elif value.shape != target.shape and name.rpartition(".")[2] != "_extra_state":
            # how much there is of an extra state is for set_extra_state to judge
            shapes = list(value.shape), list(target.shape)
            found.append(f"{name!r} has shape {shapes[0]} in the file, {shapes[1]} in the model")
        elif value.dtype != target.dtype:
            of_numbers = value.dtype.is_floating_point and target.dtype.is_floating_point
            way = f"; convert the model with model.to({value.dtype}), load, and convert it back"
            what = f"{value.dtype} in the file, {target.dtype} in the model{way * of_numbers}"
            alike.setdefault(what, []).append(name)
    for what, names in alike.items():
        more = f" and {len(names) - 2} more" * (len(names) > 2)
        verb = "is" if len(names) == 1 else "are"
        found.append(f"{', '.join(map(repr, names[:2]))}{more} {verb} {what}")
    # The file may come from a model in which the two were untied and trained apart.
    for name, first in shared_names(targets).items():
        if targets[name].is_meta or not {name, first} <= values.keys():
            continue
        if not _equal(values[name], values[first]):
            found.append(
                f"{first!r} and {name!r} are one tensor in the model, the file has two values"
            )
    return found


def _constraints(
    model: nn.Module, saved: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, SequenceLayer, str, str]]:
    """Iterate over every parameter's layer and its path, its name, and its constraint in a file."""
    for path, layer in named_neurons(model):
        for name in layer.constraints:
            yield path, layer, name, saved.get(plain(path), {}).get(f"constraint of {name}", "")


def _decays(model: nn.Module, saved: Mapping[str, Mapping[str, str]]) -> Constraints:
    """Return the constraints that a file names, of decays of the model by the path of a layer."""
    found: dict[str, dict[str, str]] = {}
    for path, layer, name, text in _constraints(model, saved):
        if is_decay(layer.constraints[name]) and text:
            found.setdefault(plain(path), {})[name] = text
    return found


def _out_of_bounds(model: nn.Module, saved: Mapping[str, Mapping[str, str]]) -> list[str]:
    """List weights without bounds in the file that the bounds of the model would change."""
    found: list[str] = []
    for path, layer, name, text in _constraints(model, saved):
        raw = getattr(layer, f"raw_{name}").detach()
        is_new = layer.constraints[name].name == "clamp" and text == "unbounded"
        if is_new and not _equal(layer._constrained(name, raw), raw):
            found.append(f"{join_path(path, name)} is out of its bounds in the file")
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have equal values, NaN counting as equal to NaN."""
    both = one.isnan() & other.isnan() if one.shape == other.shape else None
    return both is not None and bool(((one == other) | both).all())


def _join_first(found: list[str]) -> str:
    """Join the first few of many texts for an error message."""
    more = f" and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
    return "; ".join(found[:_MOST_LISTED]) + more
