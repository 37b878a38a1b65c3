from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from tracetorch.core.hooks import forward_hooks, hooked_weights


def double(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (2 * args[0],)


def hook_count(*modules: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules)


def test_hooks_act_within_the_block_beside_those_of_others() -> None:
    module, x, seen = nn.Identity(), torch.tensor([3.0]), list[Any]()
    with forward_hooks(before=[(module, double)], after=[(module, lambda *given: given[3] + 1)]):
        assert module(x).item() == 7.0
    assert module(x).item() == 3.0
    assert hook_count(module) == 0
    with forward_hooks(before=[(module, lambda *_: None)], after=[(module, lambda *_: None)]):
        assert module(x) is x
    module.register_forward_pre_hook(double)  # another's, which stay
    module.register_forward_hook(lambda module, args, y: y + 1)
    note = lambda module, args, kwargs, y: seen.append((y.item(), kwargs))  # noqa: E731
    early = lambda module, args, kwargs: seen.append(args[0].item())  # noqa: E731
    hooks: dict[str, Any] = {"earliest": [(module, early)], "first": [(module, note)]}
    with forward_hooks(**hooks, before=[(module, double)], after=[(module, note)]):
        module(x)
    assert seen == [3.0, (12.0, {}), (13.0, {})]
    assert hook_count(module) == 2
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
    hooks: dict[str, Any] = {"before": [(first, double)], argument: failing(second, double)}
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
