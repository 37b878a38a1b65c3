"""Random numbers from a counter: known answers, and the compiled kernel against PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tracetorch.fuse.runtime.threefry import compiled_uniforms, threefry, uniforms


# Of the authors' own known answers, for 20 rounds (Random123, kat_vectors).
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(counter, key, expected) -> None:
    def pair(values: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return torch.tensor(values[0]), torch.tensor(values[1])

    assert tuple(map(int, threefry(pair(key), pair(counter)))) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 4), (2, 1025), (0, 4)])
@pytest.mark.parametrize("start", [0, 2**32 - 2, 2**62 - 1])
def test_compiled_numbers_are_those_of_pytorch(shape, dtype, start) -> None:
    lanes = torch.Size(shape).numel()
    position = (start - torch.arange(lanes).remainder(3)).clamp(min=0).reshape(shape[::-1])
    position = position.permute(tuple(range(len(shape)))[::-1])  # in another order of memory
    for found, expected in zip(
        compiled_uniforms(position, 7, dtype),
        uniforms(position.contiguous(), 7, dtype),
        strict=True,
    ):
        assert torch.equal(found, expected)
        assert found.dtype == dtype
        assert found.shape == (7, *shape)


def test_a_step_later_is_the_next_number() -> None:
    position = torch.randint(2**40, (2, 3), generator=torch.Generator().manual_seed(0))
    whole = uniforms(position, 6, torch.float64)
    for later in range(6):
        for part, all_steps in zip(
            uniforms(position + later, 6 - later, torch.float64), whole, strict=True
        ):
            assert torch.equal(part, all_steps[later:])


def test_numbers_are_uniform_independent_and_never_at_the_ends() -> None:
    one, other = compiled_uniforms(torch.zeros(64, 64, dtype=torch.int64), 100, torch.float32)
    count = one.numel()
    for drawn in (one, other):
        assert float(drawn.min()) > 0
        assert float(drawn.max()) < 1
        # chi squared of 100 bins: 99 expected, with a deviation of 14
        observed = torch.histc(drawn, 100, 0, 1)
        assert float((observed - count / 100).square().sum() / (count / 100)) < 99 + 5 * 14
    centred, also = one.double() - 0.5, other.double() - 0.5
    pairs = [
        (centred, also),
        (centred[1:], centred[:-1]),  # of a step and the next
        (centred[:, 1:], centred[:, :-1]),  # of a lane and its neighbour
        (centred[:, :, 1:], centred[:, :, :-1]),
    ]
    for a, b in pairs:
        assert abs(float((a * b).mean() * 12)) < 5 / count**0.5
