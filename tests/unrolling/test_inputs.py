from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tracetorch.unrolling.inputs import Inputs, parse_inputs

T, B = 5, 2
RAGGED = [torch.ones(3, 2), torch.ones(2, 2)]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a prototype, says PyTorch
    NESTED = torch.nested.nested_tensor(RAGGED)
JAGGED = torch.nested.nested_tensor(RAGGED, layout=torch.jagged)
PACKED = nn.utils.rnn.pack_sequence(RAGGED)


def sequence(features: int = 3) -> Tensor:
    return torch.arange(float(T * B * features)).reshape(T, B, features)


def containers(x: Tensor, y: Tensor) -> list[Any]:
    return [x, (x, y), {"left": x, "right": y}]


def tensors_of(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values() if isinstance(inputs, dict) else inputs)


# parse_inputs


@pytest.mark.parametrize("index", range(3), ids=["tensor", "tuple", "dict"])
def test_containers_keep_their_kind(index: int) -> None:
    x = containers(sequence(3), sequence(4))[index]
    inputs = parse_inputs(x, None, 0, True)
    assert (inputs.steps, inputs.static, inputs.batch) == (T, False, B)
    assert type(inputs.tensors) is type(x)
    for parsed, tensor in zip(tensors_of(inputs.tensors), tensors_of(x), strict=True):
        assert torch.equal(parsed, tensor)
    if isinstance(x, dict):
        assert isinstance(inputs.tensors, dict)
        assert list(inputs.tensors) == list(x)


@pytest.mark.parametrize("time_dim", [1, -2])
def test_time_is_moved_to_the_front(time_dim: int) -> None:
    x = sequence()
    inputs = parse_inputs(x.movedim(0, 1), None, time_dim, True)
    assert (inputs.steps, inputs.batch) == (T, B)
    assert torch.equal(tensors_of(inputs.tensors)[0], x)


def test_missing_batch_is_added_behind_time() -> None:
    inputs = parse_inputs(torch.ones(T, 3), None, 0, False)
    assert (inputs.steps, inputs.batch) == (T, 1)
    assert tensors_of(inputs.tensors)[0].shape == (T, 1, 3)


def test_static_inputs_have_no_time() -> None:
    inputs = parse_inputs(torch.ones(B, 3), 4, 0, True)
    assert (inputs.steps, inputs.static, inputs.batch) == (4, True, B)
    inputs = parse_inputs(torch.ones(3), 4, 0, False)
    assert (inputs.batch, tensors_of(inputs.tensors)[0].shape) == (1, (1, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((sequence(), 2.0, 0, True), TypeError, r"steps must be an integer, got 2\.0"),
        ((sequence(), True, 0, True), TypeError, "steps must be an integer, got True"),
        ((sequence(), 0, 0, True), ValueError, "steps must be at least 1, got 0"),
        ((sequence(), None, "t", True), TypeError, "time_dim must be an integer, got 't'"),
        ((sequence(), None, 3, True), ValueError, r"time_dim is 3, but x has shape \[5, 2, 3\]"),
        (([1.0], None, 0, True), TypeError, "a tensor, a tuple or a dict of tensors, got list"),
        ((NESTED, None, 0, True), TypeError, r"got a nested tensor\. .*tt\.data\.pad\(sequences\)"),
        ((NESTED, None, 1, True), TypeError, r"got a nested tensor\. .*tt\.data\.pad\(sequences\)"),
        ((JAGGED, None, 0, True), TypeError, r"got a nested tensor\. .*tt\.data\.pad\(sequences\)"),
        ((PACKED, None, 0, True), TypeError, r"got PackedSequence\. .*mask goes to losses, decod"),
        ((RAGGED, None, 0, True), TypeError, r"got list\. Sequences of unequal length: x, mask ="),
        ((3, None, 0, True), TypeError, r"got int\.$"),
        (((), None, 0, True), ValueError, "x holds no tensor"),
        (({}, None, 0, True), ValueError, "x holds no tensor"),
        (((sequence(), 1), None, 0, True), TypeError, r"x\[1\] must be a tensor, got int"),
        (({"a": None}, None, 0, True), TypeError, r"x\['a'\] must be a tensor, got NoneType"),
        ((torch.ones(3), None, 0, True), ValueError, r"x needs time and a batch, got shape \[3\]"),
        ((torch.tensor(1.0), None, 0, False), ValueError, r"x needs time, got shape \[\]"),
        ((torch.tensor(1.0), 2, 0, True), ValueError, r"x needs a batch, got shape \[\]"),
        ((torch.ones(0, 2), None, 0, True), ValueError, r"x has no time step: shape \[0, 2\]"),
        (
            ((torch.ones(5, 2), torch.ones(4, 2)), None, 0, True),
            ValueError,
            r"x: x\[1\] has time and batch \[4, 2\], x\[0\] has \[5, 2\]",
        ),
        (
            ({"a": torch.ones(2), "b": torch.ones(3)}, 4, 0, True),
            ValueError,
            r"x: x\['b'\] has batch \[3\], x\['a'\] has \[2\]",
        ),
    ],
)
def test_error_names_the_tensor_and_what_is_allowed(
    arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        parse_inputs(*arguments)


# Inputs


@pytest.mark.parametrize("index", range(3), ids=["tensor", "tuple", "dict"])
def test_each_step_yields_the_inputs_of_one_step(index: int) -> None:
    x = containers(sequence(3), sequence(4))[index]
    steps = list(parse_inputs(x, None, 0, True).each_step())
    assert len(steps) == T
    for t, step in enumerate(steps):
        assert type(step) is type(x)
        for now, whole in zip(tensors_of(step), tensors_of(x), strict=True):
            assert torch.equal(now, whole[t])


def test_each_step_of_static_inputs_yields_the_same() -> None:
    x = torch.ones(B, 3)
    assert all(step is x for step in parse_inputs(x, 3, 0, True).each_step())
    assert len(list(parse_inputs(x, 3, 0, True).each_step())) == 3


@pytest.mark.parametrize("index", range(3), ids=["tensor", "tuple", "dict"])
@pytest.mark.parametrize(
    ("steps", "counts"), [(2, [2, 2, 1]), (5, [5]), (9, [5]), (1, [1, 1, 1, 1, 1])]
)
def test_split_covers_all_steps_in_order(index: int, steps: int, counts: list[int]) -> None:
    x = containers(sequence(3), sequence(4))[index]
    parts = parse_inputs(x, None, 0, True).split(steps)
    assert [part.steps for part in parts] == counts
    assert all(part.batch == B and not part.static for part in parts)
    columns = zip(*(tensors_of(part.tensors) for part in parts), strict=True)
    for pieces, whole in zip(columns, tensors_of(x), strict=True):
        assert torch.equal(torch.cat(pieces), whole)


def test_split_of_static_inputs_divides_the_steps_alone() -> None:
    x = torch.ones(B, 3)
    parts = parse_inputs(x, 5, 0, True).split(2)
    assert [part.steps for part in parts] == [2, 2, 1]
    assert all(part.tensors is x and part.static for part in parts)


@pytest.mark.parametrize(("steps", "expected"), [(2, 2), (9, T)])
def test_first_returns_detached_steps(steps: int, expected: int) -> None:
    x = sequence().requires_grad_()
    first = parse_inputs(x, None, 0, True).first(steps)
    assert (first.steps, first.batch) == (expected, B)
    (tensor,) = tensors_of(first.tensors)
    assert not tensor.requires_grad
    assert torch.equal(tensor, x[:steps])


def test_first_of_static_inputs_keeps_the_tensor_whole() -> None:
    x = torch.ones(B, 3, requires_grad=True)
    first = parse_inputs(x, 5, 0, True).first(2)
    assert first.steps == 2
    (tensor,) = tensors_of(first.tensors)
    assert not tensor.requires_grad
    assert torch.equal(tensor, x)


def test_folded_puts_time_into_the_batch() -> None:
    x = sequence()
    assert torch.equal(parse_inputs(x, None, 0, True).folded(), x.reshape(T * B, 3))
    static = Inputs(x[0], steps=3, static=True, batch=B)
    assert torch.equal(static.folded(), torch.cat([x[0]] * 3))
