"""Every public module goes on as it was after each way to copy, to save and to load it."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import MAKERS, module_and_step, through_save
from tests.test_package import ROOMS

# Without a tensor of its own to build, or not a layer: what it is for has tests of its own.
ABSTRACT = {"Neuron", "SequenceLayer", "TTModule", "STDP", "HubMixin"}


def test_every_public_module_is_in_the_lists() -> None:
    listed = {name.partition(",")[0].rpartition(".")[2] for name in MAKERS}
    found = {name: getattr(room, name) for room in (tt, *ROOMS) for name in room.__all__}
    public = {n for n, k in found.items() if inspect.isclass(k) and issubclass(k, nn.Module)}
    assert public - listed <= ABSTRACT


def state_dict(one: Any, other: Any, path: Path) -> Any:
    """Load the tensors through a file of PyTorch, and the states by name."""
    other.load_state_dict(through_save(one.state_dict()))
    tt.set_states(other, tt.get_states(one))
    return other


def saved(one: Any, other: Any, path: Path) -> Any:
    """Save and load with the states."""
    tt.save(one, path, states=True)
    assert tt.load(path, other, states=True) == tt.checkpoint.Loaded(tt.__version__)
    return other


WAYS: dict[str, Callable[[Any, Any, Path], Any]] = {
    "deepcopy": lambda one, other, path: copy.deepcopy(one),
    "pickle": lambda one, other, path: pickle.loads(pickle.dumps(one)),
    "torch.save": lambda one, other, path: through_save(one),
    "state_dict": state_dict,
    "tt.save": saved,
}


# PyTorch refuses to pickle what is parametrized.
PARAMETRIZED = ("Recurrent, connected", "quantize.Prepared")
# The tensors of layers in a list are no part of a state_dict.
CASES = [
    pytest.param(
        name, way, marks=[pytest.mark.slow] * ("Former" in name or "Net" in name or "VGG" in name)
    )
    for name in MAKERS
    for way in WAYS
    if (name, way) != ("layers in a list", "state_dict")
]


def run(module: Any, step: torch.Tensor) -> list[Any]:
    torch.manual_seed(0)
    return [module(step * (0.9**t if step.abs().max() < 9 else 1)) for t in range(3)]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_module_goes_on_after(name: str, way: str, tmp_path: Path) -> None:
    (one, step), (other, _) = module_and_step(name), module_and_step(name, seed=1)
    one.train(name == "LockedDropout")
    other.train(one.training)
    with torch.set_grad_enabled(name == "online.OnlineLearner"):
        run(one, step)
        if name in PARAMETRIZED and way in ("pickle", "torch.save"):
            with pytest.raises(RuntimeError, match="parametrized modules is only supported"):
                WAYS[way](one, other, tmp_path / "file")
            return
        back = WAYS[way](one, other, tmp_path / "file")
        assert type(back) is type(one)
        if name != "quantize.Prepared, converted":  # a unit is printed, and no tensor
            assert repr(back) == repr(one)
        for read in (nn.Module.state_dict, tt.get_states):
            torch.testing.assert_close(read(back), read(one), rtol=0, atol=0)
        before = {n: value.clone() for n, value in tt.get_states(one).items()}
        found = run(back, step)
        torch.testing.assert_close(tt.get_states(one), before, rtol=0, atol=0)
        torch.testing.assert_close(found, run(one, step), rtol=0, atol=0)
