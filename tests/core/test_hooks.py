from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from tracetorch.core.hooks import forward_hooks, hooked_weights


def double(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (2 * args[0],)


def increment(module: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor:
    return output + 1


def observe(*args: Any) -> None:
    pass


def hook_count(*modules: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules)


def test_hooks_change_arguments_and_output_within_the_block() -> None:
    module, x = nn.Identity(), torch.tensor([3.0])
    with forward_hooks(before=[(module, double)], after=[(module, increment)]):
        assert module(x).item() == 7.0
    assert module(x).item() == 3.0
    assert hook_count(module) == 0
    with forward_hooks(before=[(module, observe)], after=[(module, observe)]):
        assert module(x) is x
    module.register_forward_pre_hook(double)  # another's, which stays
    with forward_hooks(before=[(module, double)]):
        assert module(x).item() == 12.0
    assert hook_count(module) == 1


def test_places_of_hooks_beside_those_of_others() -> None:
    module, seen = nn.Identity(), list[Any]()
    module.register_forward_pre_hook(double)
    module.register_forward_hook(lambda module, args, y: y + 1)
    note = lambda module, args, kwargs, y: seen.append((y.item(), kwargs))  # noqa: E731
    early = lambda module, args, kwargs: seen.append(args[0].item())  # noqa: E731
    hooks: dict[str, Any] = {"earliest": [(module, early)], "first": [(module, note)]}
    with forward_hooks(**hooks, after=[(module, note)]):
        module(torch.tensor(3.0))
    assert seen == [3.0, (6.0, {}), (7.0, {})]
    linear, x = nn.Linear(2, 2), torch.ones(1, 2)
    with forward_hooks(after=[(linear, lambda module, args, kwargs, y: seen.append(kwargs))]):
        linear(input=x)
    assert seen[-1]["input"] is x


def failing(module: nn.Module, hook: Any) -> Iterator[tuple[nn.Module, Any]]:
    yield module, hook
    raise RuntimeError("failed midway")


@pytest.mark.parametrize("argument", ["earliest", "before", "first", "after"])
def test_error_while_registering_removes_all_hooks(argument: str) -> None:
    first, second = nn.Identity(), nn.Identity()
    hooks: dict[str, Any] = {"before": [(first, observe)], argument: failing(second, observe)}
    with pytest.raises(RuntimeError, match=r"^failed midway$"), forward_hooks(**hooks):
        pytest.fail("the block ran")
    assert hook_count(first, second) == 0


def test_hooked_weights_are_named() -> None:
    layer = nn.Linear(3, 3)
    assert hooked_weights(layer) == set()
    prune.identity(layer, "bias")
    prune.random_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "weight", 0.5)  # by a container of both
    assert hooked_weights(layer) == {"weight", "bias"}
