"""Name and load the tensors of a model, those of unregistered modules too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias, TypeVar, cast

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tracetorch.core.walk import hidden_modules, join_path

V = TypeVar("V")

_SEGMENTS = frozenset(("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile`` and data parallel wrappers."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = cast(nn.Module, model.module)
        elif "_orig_mod" in model._modules:
            model = cast(nn.Module, model._modules["_orig_mod"])
        else:
            return model


def plain(name: str) -> str:
    """Remove the segments that wrappers of submodules add to a name or path."""
    return ".".join(part for part in name.split(".") if part not in _SEGMENTS)


def renamed(values: Mapping[str, V], rename: Callable[[str], str] = plain) -> dict[str, V]:
    """Map each new name to the value of the old one."""
    return {rename(name): value for name, value in values.items()}


def file_rename(file: Collection[str], model: Collection[str]) -> Callable[[str], str]:
    """Return the function that removes what wrappers added to the names of a file."""

    def in_data_parallel(name: str) -> str:
        return plain(name).removeprefix("module").removeprefix(".")

    # A model may call a part of its own "module": no wrapper added that.
    saved = [plain(name).startswith("module.") for name in file]
    wrapped = all(saved) and not any(name.startswith("module.") for name in model)
    rename = in_data_parallel if wrapped else plain
    return rename if len(set(map(rename, file))) == len(file) else str


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the ``state_dict`` and unregistered modules' tensors, under names without wrappers."""
    named: dict[str, Tensor] = {}
    for path, module in [("", model), *hidden_modules(model)]:
        # The walk writes the position in a set in braces.
        if "{" in path:
            raise ValueError(
                f"{path!r} is a module in a set, which has no order: its tensors cannot be named. "
                "Hold the modules in a list or a dict."
            )
        for name, value in module.state_dict().items():
            full = plain(join_path(path, name))
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{full!r} in the state_dict is a {type(value).__name__}, not a tensor. Keep "
                    "it out of the state_dict (get_extra_state), or use torch.save."
                )
            if full in named:
                raise ValueError(
                    f"two tensors would be called {full!r}. Give the modules' containers keys that "
                    "differ, and without dots."
                )
            named[full] = value
    return named


def optional_names(model: nn.Module) -> list[str]:
    """Return the names among :func:`named_tensors` that files of earlier versions lack."""
    return [
        plain(join_path(path, "_extra_state"))
        for root, module in [("", model), *hidden_modules(model)]
        for path, layer in module.named_modules(prefix=root, remove_duplicate=False)
        # a mark: the class is of tt.integers, which most models do without
        if getattr(layer, "optional_extra_state", False)
    ]


Constraints: TypeAlias = Mapping[str, Mapping[str, str]]


def load_tensors(model: nn.Module, values: Mapping[str, Tensor], constraints: Constraints) -> None:
    """Load values by name, others are ignored; ``constraints`` are those of the file's decays."""
    for path, module in [("", model), *hidden_modules(model)]:
        prefix = f"{path}." if path else ""
        # load_state_dict, not copy_: modules may convert old values in their own hooks.
        own = OrderedDict(
            (name, values[full])
            for name in module.state_dict()
            if (full := plain(prefix + name)) in values
        )
        own._metadata = {  # type: ignore[attr-defined]  # where state_dict() keeps them
            name: {"constraints": constraints[full]}
            for name, _ in module.named_modules(remove_duplicate=False)
            if (full := plain(join_path(path, name))) in constraints
        }
        module.load_state_dict(own, strict=False)


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
