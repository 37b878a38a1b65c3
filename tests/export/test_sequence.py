from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import layer, sequence
from tests.export.models import Hidden, assert_equal, made, reference, sample_of


@pytest.mark.parametrize(
    "name",
    [
        "skip",
        pytest.param("recurrent", marks=pytest.mark.slow),
        pytest.param("dense", marks=pytest.mark.slow),
        pytest.param("conv", marks=pytest.mark.slow),
    ],
)
def test_sequence_equals_unroll_by_step(name: str) -> None:
    model = made(name)
    program = tt.export.sequence(model, sample_of(name, 5, 1))
    run = program.module()
    for steps, batch in ((1, 1), (9, 4)):
        x = sample_of(name, steps, batch)
        got = run(x, tt.export.initial_states(program, batch))
        assert_equal(got, reference(model, x))
    assert not tt.get_states(model)


@pytest.fixture(scope="module")
def exported() -> tuple[Hidden, Any]:
    model = Hidden()
    return model, tt.export.sequence(model, torch.rand(1, 1, 3))


def test_sequence_equals_kernels(exported: tuple[Hidden, Any]) -> None:
    (model, program), x = exported, sequence(9, 4, 3, dtype=torch.float32)
    with torch.no_grad(), tt.fuse.backend("cpu"):
        y = tt.unroll(model, x)
        got, states = program.module()(x, tt.export.initial_states(program, 4))
    torch.testing.assert_close(got, y)
    expected = tt.get_states(model)
    tt.zero_states(model)
    assert states.keys() == expected.keys()
    for name, state in states.items():
        torch.testing.assert_close(state, expected[name], msg=name)


# torch.export.load of torch 2.12 reads tensors from bytes
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
def test_a_saved_program_continues_a_sequence_cut_in_two(
    exported: tuple[Hidden, Any], tmp_path: Path
) -> None:
    model, program = exported
    torch.export.save(program, tmp_path / "sequence.pt2")
    program = torch.export.load(tmp_path / "sequence.pt2")
    run = program.module()
    x = sequence(9, 4, 3, dtype=torch.float32)
    y, last = reference(model, x)
    first, states = run(x[:2], tt.export.initial_states(program, 4))
    rest, after = run(x[2:], states)
    assert_equal(torch.cat([first, rest]), y)
    assert_equal(after, last)


def test_a_model_without_states_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear has no states.*use torch\.export\.export"):
        tt.export.sequence(nn.Linear(3, 3), torch.rand(5, 2, 3))


def test_a_sample_without_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x needs time and a batch, got shape \[3\]"):
        tt.export.sequence(layer("LIF", 3), torch.rand(3))
