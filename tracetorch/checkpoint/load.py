"""Load a checkpoint into a model whose modules match those that were saved."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from tracetorch.checkpoint.descriptions import (
    CONSTRAINT,
    Parts,
    describe,
    layer_differences,
    module_differences,
    plain,
)
from tracetorch.checkpoint.read import WRONG_HEADER, Header, read
from tracetorch.checkpoint.save import named_tensors, shared_names, unwrapped
from tracetorch.core.checks import check_flag, check_module, check_unsharded
from tracetorch.core.snapshot import restored_on_error
from tracetorch.core.walk import hidden_modules, join_path
from tracetorch.snn.states import named_neurons, set_states

_META = 'on the device meta in the model, which keeps no values; call model.to_empty(device="cpu")'
_MOST_LISTED = 8  # differences in one error message


@dataclass(frozen=True)
class Loaded:
    """Result of :func:`tt.load`: version of the file, missing and unexpected names.

    Args:
        version: version of traceTorch that wrote the file; ``None`` for any other writer.
        missing: names that only the model has; their values are kept.
        unexpected: names that only the file has.

    Example:
        >>> Loaded("0.10.0").missing
        ()
    """

    version: str | None
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


def load(
    path: str | os.PathLike[str], model: nn.Module, *, strict: bool = True, states: bool = False
) -> Loaded:
    """Load the parameters and buffers of a file into ``model``.

    It reads what :func:`tt.save` writes, any safetensors file, and a ``state_dict`` that
    ``torch.save`` wrote, one of traceTorch 0.9.2 too; pickled code never runs. A file of
    ``tt.save`` describes its modules: where a neuron layer has another reset, part, rank,
    constraint or spike function, another module of this package another setting, or any module
    another class, nothing is loaded. What changes no output in evaluation mode may differ:
    surrogates, ``detach_reset``, what is learnable, ``Dropout``; so may wrappers, as of
    ``torch.compile``. Of PyTorch's modules and your own the class is compared by its name, and no
    setting; of your own spike functions some values.

    The states of the model are kept, unless ``states=True`` loads those of the file; a layer
    without states in the file then starts from rest. Other files hold names and shapes alone:
    what their modules computed cannot be checked.

    Where an error is raised, the model is unchanged. NaN values are loaded.

    Args:
        path: the file.
        model: any module.
        strict: whether names and modules must be the same in both; if false, names that only one of
            them has are skipped and returned, and modules that receive no value, or that you
            defined, may be of another class. Layers, settings and tensors that both have must
            always agree, and a file without a name of the model is refused.
        states: whether to load the states of the file too.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``model`` is not a module, or its ``state_dict`` holds more than tensors;
            ``strict`` or ``states`` is not a bool.
        ValueError: the file is damaged; its modules, names, shapes or dtypes are not the model's;
            it holds no states; the model is on the device ``meta``, which keeps no values.
        RuntimeError: a layer refuses a value, as one of integers what it cannot hold.

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
    check_unsharded(model, "tt.load")
    check_flag("strict", strict)
    check_flag("states", states)
    model = unwrapped(model)
    values, file_states, header = read(path)
    targets, built = named_tensors(model), describe(model)
    # A file that describes its modules was written without wrappers.
    rename = _file_rename(values, targets) if header is None else str
    values = {rename(name): value for name, value in values.items()}
    owners = {name.rpartition(".")[0] for name in values}
    for owner, layer in model.named_modules():
        # settings of integers, which files of earlier versions lack
        if owner in owners and getattr(layer, "optional_extra_state", False):
            values.setdefault(name := join_path(owner, "_extra_state"), targets[plain(name)])
    mismatch = f"{os.fspath(path)!r} does not fit {type(model).__name__}"
    # Every check comes before the first value is written.
    try:
        found = _mismatches(values, targets, header, built, strict)
    except WRONG_HEADER as error:
        raise ValueError(f"{os.fspath(path)!r} describes itself wrongly: {error!r}.") from error
    if found:
        advice = "Build the model as the file describes it; strict=False skips names of one alone."
        more = f" and {len(found) - _MOST_LISTED} more" * (len(found) > _MOST_LISTED)
        raise ValueError(f"{mismatch}. {'; '.join(found[:_MOST_LISTED])}{more}. {advice}")
    if states and (header is None or header.get("states") is None):
        advice = "Save with tt.save(model, path, states=True), or load without."
        raise ValueError(f"{os.fspath(path)!r} holds no states. {advice}")
    matching = {name: value for name, value in values.items() if name in targets}
    with _restored(model, {name: targets[name] for name in matching}, built["modules"]):
        _load_tensors(model, matching, header["modules"] if header else {})
        if states:  # last: what has failed has changed none
            paths = {plain(path): path for path, _ in named_neurons(model)}
            split = [(*name.rpartition("."), t) for name, t in file_states.items()]
            named = {join_path(paths.get(layer, layer), name): t for layer, _, name, t in split}
            set_states(model, named)
    return Loaded(
        None if header is None else header["version"],
        tuple(name for name in targets if name not in values),
        tuple(name for name in values if name not in targets),
    )


def _file_rename(file: Collection[str], model: Collection[str]) -> Callable[[str], str]:
    """Return the function that removes what wrappers added to the names of a file."""

    def in_data_parallel(name: str) -> str:
        return plain(name).removeprefix("module").removeprefix(".")

    # A model may call a part of its own "module": no wrapper added that.
    saved = [plain(name).startswith("module.") for name in file]
    wrapped = all(saved) and not any(name.startswith("module.") for name in model)
    rename = in_data_parallel if wrapped else plain
    return rename if len(set(map(rename, file))) == len(file) else str


def _mismatches(
    values: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    header: Header | None,
    built: Mapping[str, Parts],
    strict: bool,
) -> list[str]:
    """List in what a file does not fit a model: of the first kind, others may follow from it."""
    unlike = layer_differences(header["layers"], built["layers"], strict) if header else []
    if unlike:
        return unlike
    found = [f"the file lacks {name!r}" for name in targets if name not in values]
    found += [f"only the file has {name!r}" for name in values if name not in targets]
    if strict and found:
        return found
    matching = {name: value for name, value in values.items() if name in targets}
    if targets and values and not matching:
        nothing = "none of its names is one of the model's, so that strict=False would load nothing"
        return [nothing, *found]
    misfits = _misfits(targets, matching)
    # shapes before settings: they tell sizes apart better
    if misfits or header is None or not header["modules"]:  # which older files lack
        return misfits
    receiving = {name.rpartition(".")[0] for name in matching}
    return module_differences(header["modules"], built["modules"], strict, receiving)


def _load_tensors(model: nn.Module, values: Mapping[str, Tensor], described: Parts) -> None:
    """Load values by name, others are ignored, of decays with the bounds of a description."""
    for path, module in [("", model), *hidden_modules(model)]:
        # load_state_dict, not copy_: modules may convert old values in their own hooks.
        names = {name: plain(join_path(path, name)) for name in module.state_dict()}
        own = OrderedDict((n, values[full]) for n, full in names.items() if full in values)
        metadata: dict[str, dict[str, dict[str, str]]] = {}
        for name, _ in module.named_modules(remove_duplicate=False):
            texts = described.get(plain(join_path(path, name)), {}).items()
            bounds = {k.removeprefix(CONSTRAINT): v for k, v in texts if k.startswith(CONSTRAINT)}
            metadata[name] = {"constraints": bounds}
        own._metadata = metadata  # type: ignore[attr-defined]  # where state_dict() keeps them
        module.load_state_dict(own, strict=False)


@contextlib.contextmanager
def _restored(model: nn.Module, tensors: Mapping[str, Tensor], built: Parts) -> Iterator[None]:
    """Give all back what it was where the block fails: hooks and states can, in the middle."""
    constraints = {layer: dict(layer.constraints) for _, layer in named_neurons(model)}
    try:
        with restored_on_error(tensors.values()):
            yield
    except BaseException:
        # Some layers read a buffer when it is loaded. Whoever has raised may do so again.
        with contextlib.suppress(Exception):
            copies = {name: each.detach().clone() for name, each in tensors.items()}
            _load_tensors(model, copies, built)
        for layer, kept in constraints.items():  # loading may have lowered bounds
            for name, constraint in kept.items():
                layer._declared.constrain(name, constraint)
        raise


def _misfits(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> list[str]:
    """List tensors of another shape or dtype, and shared tensors with two values in the file."""
    found: list[str] = []
    alike: defaultdict[str, list[str]] = defaultdict(list)  # names by their problem
    for name, value in values.items():
        target = targets[name]
        if target.is_meta:
            alike[_META].append(name)
        elif value.shape != target.shape and name.rpartition(".")[2] != "_extra_state":
            # how much there is of an extra state is for set_extra_state to judge
            shapes = list(value.shape), list(target.shape)
            found.append(f"{name!r} has shape {shapes[0]} in the file, {shapes[1]} in the model")
        elif value.dtype != target.dtype:
            of_numbers = value.dtype.is_floating_point and target.dtype.is_floating_point
            way = f"; convert the model with model.to({value.dtype}), load, and convert it back"
            what = f"{value.dtype} in the file, {target.dtype} in the model{way * of_numbers}"
            alike[what].append(name)
    for what, names in alike.items():
        more = f" and {len(names) - 2} more" * (len(names) > 2)
        found.append(f"{', '.join(map(repr, names[:2]))}{more}: {what}")
    # The file may come from a model in which the two were untied and trained apart.
    own = {} if found else {name: targets[name] for name in values}
    for name, first in shared_names(own).items():
        one, other = values[name], values[first]
        if not ((one == other) | ((one != one) & (other != other))).all():  # NaN is NaN
            found.append(f"{first!r} and {name!r} are one tensor in the model, two in the file")
    return found
