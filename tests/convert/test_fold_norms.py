"""Test ``fold_norms``: the same outputs and spikes, what is left, and what export, integers and NIR
make of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import tracetorch as tt
from tests.cases import Net
from tests.refusals import check, refusals
from tracetorch import snn
from tracetorch.convert import fold_norms

x = torch.rand(8, 6, 5, generator=torch.Generator().manual_seed(0))
lines = torch.rand(8, 6, 2, 9, generator=torch.Generator().manual_seed(0))
images = torch.rand(8, 6, 2, 9, 9, generator=torch.Generator().manual_seed(0))


def learned(model: nn.Module, batch: Tensor) -> nn.Module:
    """Return a model in evaluation whose norms have statistics and weights of their own."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 4.0)
            nn.init.normal_(module.bias)
    tt.unroll(model.train(), batch, from_rest=True)
    return model.eval()


def dense(first: nn.Module | None = None, **options: Any) -> nn.Sequential:
    first = first or nn.Linear(5, 10)
    return nn.Sequential(
        first, nn.BatchNorm1d(10, **options), snn.LIF(10), nn.Linear(10, 4), nn.BatchNorm1d(4),
        snn.Readout(4),
    )  # fmt: skip


def convolutions(dimensions: int, bias: bool = True) -> nn.Sequential:
    conv: Any = (nn.Conv1d, nn.Conv2d)[dimensions - 1]
    norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d)[dimensions - 1]
    return nn.Sequential(
        conv(2, 4, 3, bias=bias), norm(4), snn.LIF(4, dim=-1 - dimensions), conv(4, 3, 3), norm(3),
        snn.LIF(3, dim=-1 - dimensions), nn.Flatten(),
    )  # fmt: skip


def in_a_list() -> nn.Module:
    """Call layers by a plain list, and have them by another name as well."""
    net = dense()
    return Net(lambda m, x: functools.reduce(lambda y, call: call(y), m.calls, x), net=net,
               calls=list(net))  # fmt: skip


FOLDED: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear layers": (dense, x),
    "without a weight": (lambda: dense(affine=False), x),
    "in a list": (in_a_list, x),
    "without a bias": (lambda: dense(nn.Linear(5, 10, bias=False)), x),
    "delays": (lambda: dense(snn.DelayedLinear(5, 10, max_delay=3)), x),
    "a mask": (lambda: dense(snn.connect(nn.Linear(5, 10), mask=torch.rand(10, 5) < 0.5)), x),
    "in double precision": (lambda: dense().double(), x.double()),
    "convolutions of lines": (lambda: convolutions(1), lines),
    "convolutions of images": (lambda: convolutions(2), images),
    "convolutions without a bias": (lambda: convolutions(2, bias=False), images),
}


@pytest.mark.parametrize("name", FOLDED)
def test_the_copy_has_no_norm_and_computes_the_same(name: str) -> None:
    build, batch = FOLDED[name]
    torch.manual_seed(1)
    model = learned(build(), batch)
    folded = fold_norms(model, batch)
    assert not [m for m in folded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    names = [f"{path}.output" for path, m in model.named_modules() if isinstance(m, snn.LIF)]
    options: Any = {"record": names, "from_rest": True}
    with torch.no_grad():
        (y, seen), (wanted, spikes) = (tt.unroll(m, batch, **options) for m in (folded, model))
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)
    for key in names:
        assert spikes[key].any()
        assert torch.equal(seen[key], spikes[key])


def flipped() -> nn.Module:
    model = dense(snn.connect(nn.Linear(5, 10), signs=torch.tensor([1, 1, 1, -1, -1])))
    nn.init.constant_(model[1].weight, -1.0)  # type: ignore[arg-type]
    return model


def model(forward: Callable[[Any, Tensor], Any]) -> nn.Module:
    """Make a model of a product, a norm and a neuron."""
    return Net(forward, linear=nn.Linear(5, 10), norm=nn.BatchNorm1d(10), lif=snn.LIF(10))


def tied() -> nn.Module:
    model: Any = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 5), snn.LIF(5))
    model[2].weight = model[0].weight
    return model


LEFT: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "behind a pooling": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.AvgPool2d(2),
     nn.BatchNorm2d(4), snn.LIF(4, dim=-3)), images),
    "its input is read twice": (
     lambda: model(lambda m, x: m.lif(m.norm(y := m.linear(x)) + y)), x),
    "its input is returned too": (lambda: model(lambda m, x: (m.norm(y := m.linear(x)), y)), x),
    "the product is called twice": (
     lambda: model(lambda m, x: m.lif(m.norm(m.linear(x)) + m.linear(x + 1))), x),
    "the weight is another's too": (tied, x),
    "forward reads the product": (
     lambda: model(lambda m, x: m.norm(m.linear(x)) + m.linear.bias.mean()), x),
    "forward reads the norm": (
     lambda: model(lambda m, x: m.norm(m.linear(x)) + m.norm.bias.mean()), x),
    "statistics of the batch": (lambda: dense(track_running_stats=False), x),
    "another dimension": (lambda: nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(2),
     snn.LIF(2, dim=-2)), lines),
    "a sign": (flipped, x),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_a_norm_that_cannot_be_folded_is_left_and_computes_the_same(name: str) -> None:
    build, batch = LEFT[name]
    torch.manual_seed(1)
    model = build()
    options: Any = {"from_rest": True, "by": "step"}  # statistics of the batch are those of a step
    tt.unroll(model.train(), batch, **options)
    folded = fold_norms(model.eval(), batch)
    found = [m for m in folded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(found) == 1
    with torch.no_grad():
        y, wanted = (tt.unroll(m, batch, **options) for m in (folded, model))
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_integers_nir_and_c_of_the_copy_are_those_of_the_model(tmp_path: Path) -> None:
    model = learned(dense(), x)
    folded = fold_norms(model, x)
    spikes = (x < 0.5).float()
    one, other = (tt.quantize.prepare(each, spikes) for each in (model, folded))
    assert torch.equal(tt.unroll(one, spikes), tt.unroll(other, spikes))
    for number, each in enumerate((model, folded)):
        tt.export.c(each, tmp_path / str(number), x[:, :1])
    texts = [(tmp_path / str(n) / "model.c").read_text() for n in (0, 1)]
    assert len(texts[1]) < len(texts[0])


def pruned() -> nn.Module:
    return dense(prune.l1_unstructured(nn.Linear(5, 10), "weight", 3))


@refusals("""
    fold_norms(3, x) -> TypeError: expected an nn.Module
    fold_norms(nn.Sequential(nn.Linear(5, 3), snn.LIF(3)), x) -> ValueError: has no batch norm
    fold_norms(dense(), x[0, 0]) -> ValueError: x needs time and a batch
    fold_norms(torch.compile(dense()), x) -> ValueError: compiled
    fold_norms(pruned(), x) -> ValueError: 0 .Linear. has a hook that computes its weight
""")
def test_errors(call: str, error: str) -> None:
    check(call, error, globals())
