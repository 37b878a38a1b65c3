"""Count products wherever they are written: each as by the definition, or named as not counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn

from tests.cases import Net
from tests.unrolling.models import By
from tracetorch import metrics, snn

T, B, L, N = 4, 2, 3, 4


def spiking(t: Tensor) -> bool:
    return bool(((t == 0) | (t == 1) | (t == -1)).all())


def counted(first: Tensor, second: Tensor, *activations: Tensor) -> tuple[float, float, float]:
    """Count the products of two matrices term by term: MACs, ACs, all."""
    terms = (first.unsqueeze(-1) != 0) & (second.unsqueeze(-3) != 0)
    effective, adds = float(terms.sum()), any(map(spiking, activations))
    return (0.0, effective, terms.numel()) if adds else (effective, 0.0, terms.numel())


def of_activations(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    return counted(first, second, first, second)


class Written(snn.TTModule):
    """Products between activations, or with computed weights, written in some way.

    The input holds queries, keys and values of one step, ``[B, 3, L, N]``.
    """

    def __init__(self, way: Callable[[Written, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.weight = nn.Parameter(torch.randn(N, N))
        self.kernel = nn.Parameter(torch.randn(L, L, 2))
        self.factor = nn.Parameter(torch.randn(N, 2))
        self.cell = snn.Readout(N)

    def masked(self) -> Tensor:
        return self.weight * (self.weight > 0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.unbind(1)
        y = self.way(self, q, k, v)
        return self.cell(F.pad(y, (0, N - y.shape[-1])))


def weights_of(q: Tensor, k: Tensor, causal: bool = False) -> Tensor:
    scores = q @ k.mT / N**0.5
    if causal:
        scores = scores.masked_fill(~torch.ones(L, L, dtype=torch.bool).tril(), -torch.inf)
    return scores.softmax(-1)


def attended(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> list[Any]:
    return [of_activations(q, k.mT), of_activations(weights_of(q, k, causal), v)]


def weighted(q: Tensor, weight: Tensor) -> list[Any]:
    return [counted(q, weight.expand(B, -1, -1), q)]


attention = F.scaled_dot_product_attention


def heads(t: Tensor) -> Tensor:
    return t.unflatten(-1, (2, -1)).transpose(1, 2)


def convolved(m: Written, q: Tensor) -> list[Any]:
    unfolded = q.unfold(-1, 2, 1).transpose(1, 2).flatten(2)  # [B, places, inputs * taps]
    return [counted(unfolded, m.kernel.flatten(1).T.expand(B, -1, -1), q)]


# how it is written, and the products of a step by the definition
WAYS: dict[str, tuple[Any, Any]] = {
    "@": (lambda m, q, k, v: (q @ k.mT) @ v, lambda m, q, k, v: [
        of_activations(q, k.mT), of_activations(q @ k.mT, v)]),
    "matmul, broadcast": (lambda m, q, k, v: torch.matmul(q, k[:1].mT), lambda m, q, k, v: [
        of_activations(q, k[:1].mT.expand(B, -1, -1))]),
    "bmm": (lambda m, q, k, v: torch.bmm(q, k.mT), lambda m, q, k, v: [of_activations(q, k.mT)]),
    "baddbmm": (lambda m, q, k, v: torch.baddbmm(v, weights_of(q, q), v),
                lambda m, q, k, v: [of_activations(q, q.mT), of_activations(weights_of(q, q), v)]),
    "einsum": (lambda m, q, k, v: torch.einsum("bld,bsd->bls", q, k),
               lambda m, q, k, v: [of_activations(q, k.mT)]),
    "einsum of heads": (
        lambda m, q, k, v: torch.einsum("bhld,bhsd->bhls", heads(q), heads(k)).sum(1),
        lambda m, q, k, v: [of_activations(heads(q), heads(k).mT)]),
    "attention": (lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v),
                  lambda m, q, k, v: attended(q, k, v)),
    "attention of heads": (
        lambda m, q, k, v: attention(heads(q), heads(k), heads(v)).sum(1),
        lambda m, q, k, v: [of_activations(heads(q), heads(k).mT), of_activations(
            (heads(q) @ heads(k).mT / (N // 2) ** 0.5).softmax(-1), heads(v))]),
    "causal attention": (
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda m, q, k, v: attended(q, k, v, True)),
    "linear, computed weight": (lambda m, q, k, v: F.linear(q, m.masked()),
                                lambda m, q, k, v: weighted(q, m.masked().T)),
    "linear, low rank": (lambda m, q, k, v: q @ (m.factor @ m.factor.T),
                         lambda m, q, k, v: weighted(q, m.factor @ m.factor.T)),
    "weight of ones": (lambda m, q, k, v: F.linear(q, m.weight.sign()),
                       lambda m, q, k, v: weighted(q, m.weight.sign().T)),
    "vectors": (lambda m, q, k, v: torch.stack([q[i] @ k[i, 0] for i in range(len(q))])[:, None],
                lambda m, q, k, v: [of_activations(q[i], k[i, 0, :, None]) for i in range(B)]),
    "convolution": (lambda m, q, k, v: F.conv1d(q, m.kernel), lambda m, q, k, v: convolved(m, q)),
    "elementwise": (lambda m, q, k, v: q * k, lambda m, q, k, v: []),
}  # fmt: skip


def inputs() -> Tensor:
    torch.manual_seed(1)
    x = (torch.rand(T, B, 3, L, N) < 0.5).float()
    x[1] *= torch.rand(B, 3, L, N)
    x[2, :, 1] *= 0.5
    x[3] = 0
    return x


@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("way", WAYS)
def test_products_are_counted_as_defined_however_they_are_written(way: str, by: By) -> None:
    write, define = WAYS[way]
    model, x = Written(write), inputs()
    with torch.no_grad():
        each = [line for step in x for line in define(model, *step.unbind(1))]
    expected = [sum(line[i] for line in each) / B for i in range(3)]
    found = metrics.synaptic_operations(model, x, by=by)
    assert [found.effective_macs, found.effective_acs, found.dense] == expected
    assert (found.dense > 0) == (way != "elementwise")


def test_the_profile_has_them_in_every_figure() -> None:
    model, x = Written(WAYS["@"][0]), inputs()
    table = metrics.profile(model, x, repeats=1)
    found = metrics.synaptic_operations(model, x)
    rows = {row.path: row for row in table.rows}
    assert table.operations == found
    assert rows[""].synops == found.effective > 0
    cost = metrics.EnergyAssumptions()
    picojoules = found.effective_macs * cost.mac_pj + found.effective_acs * cost.ac_pj
    assert rows[""].energy_pj == pytest.approx(picojoules)
    assert table.uncounted == ()
    assert "not counted" not in str(table)
    with torch.inference_mode():  # where operations arrive whole
        assert metrics.synaptic_operations(Written(WAYS["@"][0]), x) == found
    timed = sum(row.seconds for row in table.rows)
    assert timed <= table.seconds  # the time of a layer inside is not counted twice


def attending(need_weights: bool) -> nn.Module:
    torch.manual_seed(0)
    part = nn.MultiheadAttention(N, 2, batch_first=True)
    forward = lambda m, x: m.cell(m.attention(x, x, x, need_weights=need_weights)[0])  # noqa: E731
    return Net(forward, attention=part, cell=snn.LIF(N))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("by", ["layer", "step"])
def test_multihead_attention_is_counted_in_whole(by: By, need_weights: bool) -> None:
    x = inputs()[[0, 1, 3], :, 0]
    row = metrics.profile(attending(need_weights), x, by=by, repeats=1).rows[0]
    assert (row.path, row.kind) == ("attention", "MultiheadAttention")
    projections = L * N * 4 * N
    assert row.dense == len(x) * (projections + 2 * L * L * N)
    assert row.acs == (x[0] != 0).sum() * 3 * N / B  # the projection of spikes
    assert 0 < row.macs < row.dense


def around(inner: nn.Module) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.inner(x, x) if isinstance(m.inner, nn.Bilinear) else m.inner(x)
        return m.cell(y[0] if isinstance(y, tuple) else y)

    return Net(forward, inner=inner, cell=snn.LIF(N))


@pytest.mark.parametrize("by", ["layer", "step"])
def test_a_compiled_model_is_counted_as_it_is(by: By) -> None:
    model, x = around(LowRank()), torch.ones(T, B, N)
    compiled = torch.compile(model, backend="eager")
    expected = metrics.synaptic_operations(model, x)
    assert metrics.synaptic_operations(compiled, x, by=by) == expected  # type: ignore[arg-type]


class LowRank(nn.Linear):
    def __init__(self) -> None:
        super().__init__(N, N)
        self.down, self.up = nn.Parameter(torch.randn(N, 1)), nn.Parameter(torch.randn(1, N))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down @ self.up


def test_own_products_are_counted_and_masks_that_cannot_follow_named() -> None:
    x = torch.ones(T, B, N)
    found = metrics.synaptic_operations(around(LowRank()), x)
    assert found.dense == T * (N * N + N + N)
    mask = torch.arange(T)[:, None] < torch.tensor([1, T])
    masked = metrics.synaptic_operations(around(LowRank()), x, mask=mask).dense
    assert masked == (T + 1) / 2 * (N * N + N + N)
    # a constant beside a parameter makes a weight
    net = nn.Sequential(snn.connect(nn.Linear(N, N), mask=torch.eye(N) > 0), snn.LIF(N))
    assert metrics.synaptic_operations(net, x, mask=mask).effective == (T + 1) / 2 * N
    model, x = attending(False), inputs()[:, :, 0]
    mask = torch.ones(T, B, dtype=torch.bool)
    table = metrics.profile(model, x, mask=mask, repeats=1)
    assert table.rows[0].macs is None
    assert table.uncounted[0].startswith("attention (MultiheadAttention): no mask can")
    with pytest.raises(ValueError, match="no mask can follow the samples"):
        metrics.synaptic_operations(model, x, mask=mask)


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (nn.ConvTranspose1d(B, B, 1), "aten.convolution"),
        (nn.Bilinear(N, N, N), "aten._trilinear"),
        (nn.LSTMCell(N, N), "a recurrent layer of PyTorch's"),
        (nn.GRUCell(N, N), "a recurrent layer of PyTorch's"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else "",
)
def test_what_is_not_counted_is_named(inner: nn.Module, reason: str) -> None:
    model, x = around(inner), torch.ones(T, B, N)
    table = metrics.profile(model, x, by="step", repeats=1)
    line = f"inner ({type(inner).__name__}): {reason}"
    assert table.uncounted == (line,)
    assert all(f"\nnot counted: {line}.\n" in text for text in (str(table), table.to_markdown()))
    message = rf"^inner \({type(inner).__name__}\) multiplies by weights"
    with pytest.raises(ValueError, match=message):
        metrics.synaptic_operations(model, x, by="step")
