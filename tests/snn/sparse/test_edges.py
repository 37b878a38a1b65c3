import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.refusals import check, refusals
from tests.snn.test_sparse_linear import seeded
from tracetorch import snn

LINE = torch.linspace(0, 1, 40)[:, None]
SIZES, TABLE = (30, 20), [[0.5, 0.1], [0.0, 1.0]]


def decayed(distance: Tensor) -> Tensor:
    return torch.exp(-distance / 0.3)


BUILDERS: dict[str, Any] = {
    "random": lambda **k: snn.random_edges(40, 40, 0.3, **k),
    "in-degree": lambda **k: snn.in_degree_edges(40, 40, 12, **k),
    "dense in-degree": lambda **k: snn.in_degree_edges(40, 40, 30, **k),
    "distance": lambda **k: snn.distance_edges(LINE, LINE, decayed, radius=0.5, **k),
    "population": lambda **k: snn.population_edges(SIZES, SIZES, TABLE, **k),
    "random mask": lambda **k: snn.random_mask(40, 40, 0.3, **k),
    "in-degree mask": lambda **k: snn.in_degree_mask(40, 40, 12, **k),
    "distance mask": lambda **k: snn.distance_mask(LINE, LINE, decayed, **k),
}


def is_sorted(edges: Tensor) -> bool:
    place = edges[0] * 2**31 + edges[1]
    return bool((place.diff() > 0).all())  # by source, then target, and none twice


@pytest.mark.parametrize("name", BUILDERS)
def test_edges_and_masks_follow_their_generator(name: str) -> None:
    build = BUILDERS[name]
    first = build(generator=seeded())
    assert first.dtype == (torch.bool if "mask" in name else torch.int64)
    assert torch.equal(first, build(generator=seeded()))
    assert not torch.equal(first, build(generator=seeded(1)))
    torch.manual_seed(0)
    assert torch.equal(first, build())  # PyTorch's own generator where there is none
    others = build(generator=seeded(), self_connections=False)
    both = [each.t().nonzero().t() if "mask" in name else each for each in (first, others)]
    assert all(map(is_sorted, both))
    assert [bool((each[0] == each[1]).any()) for each in both] == [True, False]


def test_each_edge_is_as_frequent_as_it_should_be() -> None:
    size, probability = 12, 0.3
    counts = torch.zeros(size, size)
    for seed in range(2000):
        edges = snn.random_edges(size, size, probability, generator=seeded(seed))
        counts[edges[0], edges[1]] += 1
    deviation = math.sqrt(2000 * probability * (1 - probability))
    assert float((counts - 2000 * probability).abs().max()) < 4.5 * deviation
    # those of two edges are independent: the variance of the number of edges says so
    drawn = [snn.random_edges(50, 50, 0.02, generator=seeded(n)).shape[1] for n in range(2000)]
    found = torch.tensor(drawn, dtype=torch.float64)
    assert abs(float(found.mean()) - 50) < 0.7
    assert abs(float(found.var()) / 49 - 1) < 0.15
    assert snn.random_edges(3, 4, 0.0).shape == (2, 0)
    assert snn.random_edges(3, 4, 1.0).tolist() == [
        [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3,
        [0, 1, 2] * 4,
    ]
    # far more pairs than a mask could hold
    edges = snn.random_edges(10_000_000, 10_000_000, 1e-10, generator=seeded())
    assert 9_500 < edges.shape[1] < 10_500
    assert int(edges.max()) > 9_000_000
    assert is_sorted(edges)


def test_large_draws_are_cut_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracetorch.snn.sparse.edges._DRAWN", 100)
    edges = snn.random_edges(100, 100, 0.2, generator=seeded())
    assert abs(edges.shape[1] - 2000) < 4 * 40
    assert is_sorted(edges)
    monkeypatch.setattr("tracetorch.snn.sparse.edges._PAIRS", 50)
    found = snn.distance_edges(LINE, LINE, torch.ones_like, radius=0.2)
    mask = torch.cdist(LINE, LINE) <= 0.2
    assert torch.equal(found, mask.t().nonzero().t())


@pytest.mark.parametrize("degree", [0, 1, 5, 6, 10])
@pytest.mark.parametrize("self_connections", [True, False])
def test_every_set_of_inputs_is_as_likely(degree: int, self_connections: bool) -> None:
    inputs = 10 + (not self_connections)
    edges = snn.in_degree_edges(
        inputs, inputs, degree, self_connections=self_connections, generator=seeded()
    )
    assert edges[1].bincount(minlength=inputs).tolist() == [degree] * inputs
    assert is_sorted(edges)
    outputs = 6000
    edges = snn.in_degree_edges(outputs, 5, 2, generator=seeded())
    chosen = torch.zeros(outputs, 5).index_put((edges[1], edges[0]), torch.ones(()))
    assert bool((chosen.sum(1) == 2).all())
    pairs = (chosen.t() @ chosen).triu(1)
    frequent = pairs[pairs > 0]
    assert len(frequent) == 10  # of 10 sets of two, each 600 times but for scatter
    assert float((frequent - 600).abs().max()) < 4 * math.sqrt(600)


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_near_pairs_are_all_found(dims: int) -> None:
    generator = seeded()
    inputs, outputs = (torch.rand(n, dims, generator=generator) for n in (150, 130))
    inputs[0] = 7.0  # far from all others
    for radius in (0.05, 0.3, 5.0, 100.0):
        edges = snn.distance_edges(outputs, inputs, torch.ones_like, radius=radius)
        mask = torch.cdist(inputs.double(), outputs.double()) <= radius
        assert torch.equal(edges, mask.nonzero().t())


def test_distance_is_what_the_kernel_sees() -> None:
    far, near = LINE.repeat(1, 2), torch.zeros(1000, 2)
    edges = snn.distance_edges(far, near, decayed, radius=0.9, generator=seeded())
    mask = snn.distance_mask(far, near, decayed, generator=seeded())
    length = 2**0.5 * LINE.squeeze(1)
    for found, radius in ((edges[1].bincount(minlength=40), 0.9), (mask.sum(1), math.inf)):
        expected = torch.where(length <= radius, decayed(length), 0.0)
        assert float((found / 1000 - expected).abs().max()) < 4 * 0.5 / 1000**0.5


def test_populations_are_numbered_one_after_the_other() -> None:
    edges = snn.population_edges((300, 200), (100, 400), TABLE, generator=seeded())
    counts = torch.zeros(2, 2)
    counts.index_put_(
        ((edges[1] >= 300).long(), (edges[0] >= 100).long()), torch.ones(()), accumulate=True
    )
    expected = torch.tensor([[0.5, 0.1], [0.0, 1.0]]) * torch.tensor([[3e4, 12e4], [2e4, 8e4]])
    assert torch.allclose(counts, expected, rtol=0.03)
    assert counts[1].tolist() == [0, 80_000]


@refusals("""
    snn.random_edges(3, 4, 1.5) -> ValueError: probability must lie in .0, 1., got 1.5
    snn.random_edges(3, 4, 0.5, self_connections=False) -> ValueError: for a recurrent connection
    snn.random_edges(2**28, 2**28, 0.0) -> ValueError: fewer than 2..53 pairs
    snn.random_edges(0, 4, 0.5) -> ValueError: outputs must be at least 1
    snn.in_degree_edges(3, 4, 5) -> ValueError: degree must be 0 to 4, the number of inputs, got 5
    snn.in_degree_edges(4, 4, 4, self_connections=False) -> ValueError: degree must be 0 to 3
    snn.distance_edges(line, line[0], one, radius=1.0) -> ValueError: positions .outputs, D. and
    snn.distance_edges(line, [0], one, radius=1.0) -> TypeError: inputs must be positions
    snn.distance_edges(line, line, 1.0, radius=1.0) -> TypeError: kernel must be a function
    snn.distance_edges(line, line, one, radius=0.0) -> ValueError: radius must be positive
    snn.distance_edges(line, line / 0, one, radius=1.0) -> ValueError: positions must be finite
    snn.distance_edges(line, line, lambda d: d + 9, radius=1.0) -> ValueError: probabilities in .0,
    snn.distance_edges(line, line, lambda d: 1.0, radius=1.0) -> ValueError: a probability for each
    snn.population_edges([1], [1, 2], [[1.0]]) -> ValueError: probability must be 1 rows, .* of 2
    snn.population_edges([1], [2], [[2.0]]) -> ValueError: probability must lie in .0, 1., got 2.0
    snn.population_edges([1], [2], [[1.0]], self_connections=False) -> ValueError: recurrent
""")
def test_refused(call: str, error: str) -> None:
    check(call, error, {"snn": snn, "line": LINE, "one": torch.ones_like})
