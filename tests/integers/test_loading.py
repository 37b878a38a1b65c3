"""What layers of integers load: numbers that they have; all else is refused, and their own kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import chips, integers, snn

LIF = integers.LeakyIntegrator


def neurons(state_bits: int = 16, **arguments: Any) -> integers.LeakyIntegrator:
    each = torch.tensor([100.0, 90.0])
    return LIF(2, pos_threshold=each, beta=7, state_bits=state_bits, **arguments)


# what is to load, tensors that are others, and why it does not
REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any] | nn.Module, str]] = {
    "wider states": (lambda: neurons(10), neurons(16), "_extra_state: made with another "
     "state_bits, and the layer has state_bits=10"),
    "other decays": (neurons, neurons(decay=integers.Multiplier(12)),
     "_extra_state: made with another bits of decay, and the layer has bits of decay=8"),
    "another rounding": (neurons, neurons(decay=integers.Multiplier(8, "floor")),
     "made with another rounding of decay, and the layer"),
    "another overflow": (neurons, neurons(overflow="wrap"),
     "made with another overflow, and the layer has overflow='saturate'"),
    "a binary point": (neurons, {"_extra_state": torch.tensor([17, 16, 8])},
     "_extra_state: holds rec_weight_fraction=17, which must be 0 to 16"),
    "more settings": (neurons, {"_extra_state": torch.zeros(12)}, "holds 12 settings, and the lay"),
    "a threshold": (lambda: neurons(10), {"raw_pos_threshold": torch.tensor([9.0, 512.0])},
     "raw_pos_threshold: holds 512, and the layer has integers of 0 to 511"),
    "a threshold between": (neurons, {"raw_pos_threshold": torch.tensor([9.0, 1.5])},
     "raw_pos_threshold: holds 1.5, and the layer has integers of 0 to 32767"),
    "a decay": (neurons, {"raw_beta": torch.tensor(257.0)}, "raw_beta: holds 257, .* of 0 to 256"),
    "not a number": (neurons, {"raw_beta": torch.tensor(torch.nan)}, "raw_beta: holds nan"),
    "a weight": (lambda: integers.Linear(2, 2, weight_bits=4), {"weight": torch.tensor(
     [[7, -8], [127, 0]], dtype=torch.int8)}, "weight: holds 127, and the layer has integers of -8 "
     "to 7"),
    "a weight of floats": (lambda: integers.Conv1d(1, 1, 2), {"weight": torch.tensor(
     [[[0.5, 1.0]]])}, "weight: holds 0.5, and the layer has integers of -128 to 127"),
    "wider weights": (lambda: integers.Linear(2, 2, weight_bits=4), integers.Linear(2, 2),
     "_extra_state: made with another weight_bits, and the layer has weight_bits=4"),
    "a shift": (lambda: integers.Linear(2, 2), {"_extra_state": torch.tensor([17, 8])},
     "holds shift=.*, which must be 0 to 16"),
    "a bias": (lambda: integers.Conv2d(1, 2, 1), {"bias": torch.tensor([0.0, 2.0**31])},
     "bias: holds 2147483648, and the layer has integers of -2147483648 to 2147483647"),
    "a delay": (lambda: integers.DelayedLinear(1, 2, max_delay=3), {"raw_delay": torch.tensor(
     [[4.0], [0.0]])}, "raw_delay: holds 4, and the layer has integers of 0 to 3"),
    "a delayed weight": (lambda: integers.DelayedLinear(1, 2, max_delay=3, weight_bits=2),
     {"linear.weight": torch.tensor([[4], [0]], dtype=torch.int8)}, "linear.weight: holds 4"),
    "another Xylo": (lambda: chips.xylo.LIF(1), chips.xylo.LIF(1, version=1),
     "made with another version, and the layer has version=2"),
    "spikes of Xylo": (lambda: chips.xylo.LIF(1, max_spikes=1), chips.xylo.LIF(1),
     "made with another max_spikes, and the layer has max_spikes=1"),
    "a border": (lambda: integers.Quantize(0.5, 4), integers.Quantize(0.5, 8),
     "made with another bits, and the layer has bits=4"),
    "a border's signs": (lambda: integers.Quantize(0.5), integers.Quantize(0.5, signed=False),
     "made with another signed, and the layer has signed=True"),
    "factors": (lambda: integers.Add(nn.Identity(), nn.Identity()), {"_extra_state": torch.tensor(
     [1, 2.5])}, r"_extra_state: holds 2.5, and the layer has integers of"),
    "Xylo": (lambda: chips.xylo.LIF(1), {"raw_dash_mem": torch.tensor(16.0)}, "s of 0 to 15"),
}  # fmt: skip


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_kept(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
        assert after[name].dtype == value.dtype


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_numbers_that_a_layer_does_not_have_are_not_loaded(name: str, assign: bool) -> None:
    build, other, message = REFUSED[name]
    layer = build()
    before = tensors_of(layer)
    others = other.state_dict() if isinstance(other, nn.Module) else other
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict({**before, **others}, assign=assign)
    assert_kept(layer, before)
    with pytest.raises(RuntimeError, match=r"0\."):  # of a part alone, too
        nn.Sequential(layer).load_state_dict(
            {f"0.{key}": each for key, each in others.items()}, False
        )
    assert_kept(layer, before)


def chain() -> nn.Sequential:
    """A chain made by hand: what is refused stands behind what is not, ours and PyTorch's."""
    product, loop = integers.Linear(3, 2, weight_bits=4), integers.Linear(2, 2)
    inner = nn.Sequential(product, snn.Recurrent(neurons(10), loop))
    return nn.Sequential(nn.Linear(2, 3), integers.Quantize(0.5, 6), snn.LIF(3, beta=0.5), inner)


# paths in it, what is put into the file, and why it is refused
HALVES: dict[str, tuple[dict[str, Any], str]] = {
    "state_bits": ({"3.1.neuron._extra_state": neurons(16).get_extra_state()}, "has state_bits=10"),
    "a weight": ({"3.0.weight": torch.full((2, 3), 9, dtype=torch.int8)}, "3.0.weight: holds 9"),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", HALVES)
def test_a_file_is_loaded_whole_or_not_at_all(name: str, strict: bool, tmp_path: Path) -> None:
    wrong, message = HALVES[name]
    model = chain()
    given = {key: value + 1 for key, value in tensors_of(model).items() if "_extra" not in key}
    given |= {key: value for key, value in tensors_of(model).items() if "_extra" in key} | wrong
    before = tensors_of(model)
    torch.save(given, tmp_path / "wrong.pt")
    with pytest.raises(RuntimeError, match=message):
        tt.load(tmp_path / "wrong.pt", model, strict=strict)
    assert_kept(model, before)


def test_a_layer_of_two_names_is_checked_under_both() -> None:
    layer = integers.Linear(2, 2)
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(layer), layer)
    with pytest.raises(RuntimeError, match=r"2\.weight: holds 500"):
        model.load_state_dict({**model.state_dict(), "2.weight": torch.full((2, 2), 500)})
    assert not layer.weight.any()


OLDER: dict[str, Callable[[], nn.Module]] = {
    "Xylo": lambda: chips.xylo.LIF(2),
    "a border": lambda: integers.Quantize(0.5),
}


@pytest.mark.parametrize("name", OLDER)
def test_state_dicts_of_layers_that_had_no_settings_load(name: str) -> None:
    model, into = (nn.Sequential(OLDER[name]()) for _ in range(2))
    earlier = {key: value for key, value in tensors_of(model).items() if "_extra" not in key}
    assert len(earlier) < len(model.state_dict())
    into.load_state_dict(earlier)
    assert_kept(into, tensors_of(model))
    meta = {key: value.to("meta") for key, value in model.state_dict().items()}
    into.load_state_dict(meta, assign=True)  # values come later


def test_what_learns_may_be_between_integers_and_files_of_earlier_versions_load() -> None:
    learning = neurons(bias={"value": 3.0, "learnable": True})
    learning.load_state_dict({**learning.state_dict(), "raw_bias": torch.tensor(2.5)})
    assert learning.raw_bias.item() == 2.5
    layer = neurons(gamma=9, rec_weight=3, rec_weight_fraction=2)
    earlier = {**layer.state_dict(), "_extra_state": torch.tensor(5)}
    layer.load_state_dict(earlier)
    assert layer.rec_weight_fraction == 5
    assert layer.get_extra_state().tolist()[:3] == [5, 16, 8]
    model = nn.Sequential(integers.Linear(2, 2), snn.Recurrent(neurons(), integers.Linear(2, 2)))
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
