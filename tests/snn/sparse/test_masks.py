from typing import Any

import pytest
import torch

from tracetorch import snn

LINE = torch.linspace(0, 1, 40)[:, None]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


BUILDERS: dict[str, Any] = {
    "random": lambda **k: snn.random_mask(40, 40, 0.3, **k),
    "in-degree": lambda **k: snn.in_degree_mask(40, 40, 12, **k),
    "distance": lambda **k: snn.distance_mask(LINE, LINE, lambda d: torch.exp(-d / 0.3), **k),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_masks_follow_their_generator(name: str) -> None:
    build = BUILDERS[name]
    first = build(generator=seeded())
    assert first.dtype == torch.bool
    assert torch.equal(first, build(generator=seeded()))
    assert not torch.equal(first, build(generator=seeded(1)))
    torch.manual_seed(0)
    assert torch.equal(first, build())  # PyTorch's own generator where there is none
    assert first.diagonal().any()
    assert not build(generator=seeded(), self_connections=False).diagonal().any()


def test_connections_are_as_frequent_as_they_should_be() -> None:
    mask = snn.random_mask(300, 200, 0.2, generator=seeded())
    assert abs(mask.double().mean() - 0.2) < 4 * (0.2 * 0.8 / mask.numel()) ** 0.5
    assert not snn.random_mask(3, 4, 0.0).any()
    assert snn.random_mask(3, 4, 1.0).all()
    for self_connections in (True, False):
        mask = snn.in_degree_mask(40, 40, 39, self_connections=self_connections, generator=seeded())
        assert bool((mask.sum(1) == 39).all())
    assert not mask.diagonal().any()
    # inputs are drawn evenly: each is there a binomial number of times
    counts = snn.in_degree_mask(4000, 10, 3, generator=seeded()).sum(0).double()
    assert float((counts - 1200).abs().max()) < 4 * (4000 * 0.3 * 0.7) ** 0.5


def test_distance_is_what_the_kernel_sees() -> None:
    far, near = LINE.repeat(1, 2), torch.zeros(1000, 2)
    mask = snn.distance_mask(far, near, lambda d: torch.exp(-d / 0.5), generator=seeded())
    expected = torch.exp(-(2**0.5) * LINE.squeeze(1) / 0.5)
    assert float((mask.double().mean(1) - expected).abs().max()) < 4 * 0.5 / 1000**0.5
    places = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    mask = snn.distance_mask(
        places, places, lambda d: (d == 5).float() + d.eq(0), self_connections=False
    )
    assert mask.tolist() == [[False, True], [True, False]]
