"""Networks: the sizes that papers print, by layer as by step, any neuron, what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import weighted_sum
from tests.refusals import check, refusals
from tracetorch import models, neurons, snn

# what the papers print, in millions; some of them cut where others round
PRINTED = [
    (lambda: models.MSResNet(18), 11.69),
    (lambda: models.MSResNet(34), 21.80),
    (lambda: models.MSResNet(104), 77.28),
    (lambda: models.Spikformer(8, 384), 16.81),
    (lambda: models.Spikformer(8, 512, 8), 29.68),
    (lambda: models.Spikformer(8, 768), 66.34),
    (lambda: models.Spikformer(6, 512, 8), 23.37),
    (lambda: models.Spikformer(4, 384, 12, 10, images="small"), 9.32),
    (lambda: models.Spikformer(2, 384, 12, 10, images="small"), 5.76),
    (lambda: models.Spikformer(4, 256, 8, 10, images="small"), 4.15),
    (lambda: models.QKFormer(), 16.47),
    (lambda: models.QKFormer(width=512, heads=8), 29.08),
    (lambda: models.QKFormer(width=768, heads=12), 64.96),
    (lambda: models.QKFormer((1, 1, 2), 384, 8, 100, images="small"), 6.74),
    (lambda: models.QKFormer((1, 1), 256, 16, 10, 2, images="events"), 1.50),
    (lambda: models.SpikeDrivenTransformer(), 16.81),
    (lambda: models.SpikeDrivenTransformer(8, 512), 29.68),
    (lambda: models.SpikeDrivenTransformer(8, 768), 66.34),
    (lambda: models.SpikeDrivenTransformer(2, 512, 100, images="small"), 10.28),
]
# torchvision's documentation, of the networks without neurons
RESNETS: dict[Any, int] = {
    18: 11_689_512,
    34: 21_797_672,
    50: 25_557_032,
    101: 44_549_160,
    152: 60_192_808,
}
VGGS: dict[Any, int] = {11: 132_868_840, 13: 133_053_736, 16: 138_365_992, 19: 143_678_248}
EXACT = [
    *((partial(models.SEWResNet, depth), size) for depth, size in RESNETS.items()),
    (lambda: models.SpikingVGG(11, norm=False), 132_863_336),
    *((partial(models.SpikingVGG, depth), size) for depth, size in VGGS.items()),
]

Build = Callable[..., nn.Module]
SMALL: dict[str, tuple[Build, int]] = {
    "sew": (partial(models.SEWResNet, 18, 5, 2, images="small", width=4), 8),
    "ms": (partial(models.MSResNet, 18, 5, 2, images="small", width=4), 8),
    "vgg": (partial(models.SpikingVGG, 11, 5, 2, images="small", width=2), 32),
    "spikformer": (partial(models.Spikformer, 1, 16, 2, 5, 2, images="small"), 8),
    "qkformer": (partial(models.QKFormer, (1, 1, 1), 32, 2, 5, 2, images="small"), 8),
    "qkformer-events": (partial(models.QKFormer, (1, 1), 32, 2, 5, 2, images="events"), 16),
    "spike-driven": (partial(models.SpikeDrivenTransformer, 1, 16, 5, 2, images="small"), 8),
}
T, B = 3, 2


def network(name: str, **arguments: Any) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    build, size = SMALL[name]
    net = build(**arguments).double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(3.0)
                module.bias.fill_(0.5)
    return net, torch.rand(T, B, 2, size, size, dtype=torch.float64)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("build", "size"), [*PRINTED, *EXACT])
def test_a_network_has_the_size_that_is_printed(build: Build, size: float) -> None:
    with torch.device("meta"):
        found = sum(p.numel() for p in build().parameters())
    assert found == size or abs(found / 1e6 - size) < 0.0101


@pytest.mark.parametrize("name", SMALL)
def test_a_network_runs_by_layer_as_by_step(name: str) -> None:
    net, x = network(name)
    net.eval()
    found: dict[str, list[torch.Tensor]] = {}
    for by in ("layer", "step"):
        net.zero_grad()
        y = tt.unroll(net, x, by=by, from_rest=True, check=by == "layer")
        weighted_sum(y).backward()
        states = [m.mem for m in net.modules() if hasattr(m, "mem")]
        found[by] = [y, *states, *(p.grad for p in net.parameters())]
    assert found["layer"][0].any()
    for first, second in zip(*found.values(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", SMALL)
def test_training_sees_all_steps_as_one_batch(name: str) -> None:
    net, x = network(name)
    norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    conv = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    tt.unroll(net, x)
    expected = 0.1 * conv(x.flatten(0, 1)).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", [partial(snn.BSRLIF, beta=0.7), neurons.ALIF, None])
def test_any_neuron_takes_the_place_of_the_papers(name: str, kind: Any) -> None:
    net, x = network(name, neuron=kind or (lambda num_neurons, dim: nn.ReLU()))
    cells, expected = (
        [m for m in each.modules() if isinstance(m, snn.Neuron)] for each in (net, network(name)[0])
    )
    assert len(cells) == (len(expected) if kind else 0)
    y = tt.unroll(net, x)
    weighted_sum(y).backward()
    assert y.shape == (T, B, 5)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ["spikformer", "qkformer", "qkformer-events", "spike-driven"])
def test_the_neurons_behind_attention_are_given_apart(name: str) -> None:
    thresholds = []
    for arguments in ({}, {"neuron": snn.LIF}, {"attention": snn.LIF}):
        net, _ = network(name, **arguments)
        cells = [m for path, m in net.named_modules() if path.endswith("attended")]
        thresholds += [{round(t, 4) for c in cells for t in c.pos_threshold.view(-1).tolist()}]
    assert thresholds == [{0.5}, {1.0}, {1.0}]


def test_spikformer_pools_and_vgg_has_three_linear_layers_that_drop_the_same() -> None:
    x = torch.rand(2, 3, 16, 16)
    kinds = []
    for pool_first in (False, True):
        former = models.Spikformer(1, 16, 2, 5, images="small", pool_first=pool_first)
        assert former(x).shape == (2, 5)
        pooled = [i for i, m in enumerate(former.patches) if isinstance(m, nn.MaxPool2d)]
        kinds.append([type(former.patches[i - 1]).__name__ for i in pooled])
    assert kinds == [["LIF"] * 2, ["BatchNorm2d"] * 2]
    torch.manual_seed(0)
    net = models.SpikingVGG(11, 5, width=1, dropout=0.3)
    y = tt.unroll(net, torch.rand(2, 3, 32, 32), steps=2)
    assert y.shape == (2, 2, 5)
    masks = [m.mask for m in net.modules() if isinstance(m, snn.LockedDropout)]
    assert [mask.shape for mask in masks] == [(2, 64)] * 2
    assert all(0 < float((mask == 0).float().mean()) < 0.6 for mask in masks)


@pytest.mark.parametrize("name", ["sew", "ms", "spikformer", "qkformer", "spike-driven"])
def test_the_stem_of_imagenet_divides_the_image(name: str) -> None:
    build, _ = SMALL[name]
    net = build(images="imagenet").eval()
    shapes = []
    last = [m for m in net.modules() if isinstance(m, nn.Conv2d)][-1]
    last.register_forward_hook(lambda module, args, output: shapes.append(output.shape[-2:]))
    net(torch.rand(1, 2, 64, 64))
    assert shapes == [(2, 2) if name in ("sew", "ms") else (4, 4)]


@pytest.mark.parametrize("name", ["sew", "ms"])
def test_a_residual_network_without_pools_of_maxima_is_written_to_nir(name: str) -> None:
    net, x = network(name)
    net.eval()
    again = tt.nir.from_nir(tt.nir.to_nir(net, tuple(x.shape[2:])), dt=1e-4).double().eval()
    expected = tt.unroll(net, x, from_rest=True)
    assert expected.any()
    torch.testing.assert_close(tt.unroll(again, x, from_rest=True), expected)


def refused_by_nir(name: str) -> None:
    net, x = network(name)
    tt.nir.to_nir(net.eval(), tuple(x.shape[2:]))


@refusals(
    r"""
    SEWResNet(19) -> ValueError: depth must be 18, 34, 50, 101 or 152, got 19
    MSResNet(50) -> ValueError: depth must be 18, 34 or 104, got 50
    SpikingVGG(12) -> ValueError: depth must be 11, 13, 16 or 19, got 12
    SEWResNet(images="large") -> ValueError: images must be 'imagenet' or 'small'
    SEWResNet(combine="or", width=4) -> ValueError: combine must be
    SpikeDrivenTransformer(1, 20) -> ValueError: must be a multiple of 8, got 20. Try 16
    Spikformer(1, 16, 3)
        -> ValueError: width must be a multiple of 24 \(of 8 and of heads=3\), got 16. Try 24
    QKFormer((1, 1, 1), 16, 3)
        -> ValueError: multiple of 24 \(of 8 and of 4 \* heads=12\), got 16. Try 24
    QKFormer((1, 2)) -> ValueError: depths must have one number for each of three stages
    QKFormer(images="events") -> ValueError: for each of two stages, got \(1, 2, 7\)
    QKFormer((1, 1), 24, 1, images="events") -> ValueError: multiple of 16 .* got 24. Try 16
    QKFormer(images="dvs") -> ValueError: 'imagenet', 'small' or 'events', got 'dvs'
    SpikingVGG(dropout=1.5) -> ValueError: p must lie in \[0, 1\], got 1.5
    Spikformer(1, 16, 2, attention=snn.LIF(16)) -> TypeError: attention must build a layer
    """
)
def test_wrong_arguments_are_refused(call: str, error: str) -> None:
    with torch.device("meta"):
        check(f"models.{call}", error, globals())


@refusals(
    r"""
    refused_by_nir("vgg") -> ValueError: features.3 .MaxPool2d. has no counterpart in NIR
    refused_by_nir("qkformer") -> ValueError: unflatten.*no counterpart in NIR
    refused_by_nir("spike-driven") -> ValueError: patches.9 .MaxPool2d. has no counterpart in NIR
    """
)
def test_what_has_no_counterpart_in_nir_is_refused_by_name(call: str, error: str) -> None:
    check(call, error, globals())


@pytest.mark.parametrize("kind", [models.Spikformer, partial(models.QKFormer, (1, 1, 1))])
@pytest.mark.parametrize(("width", "heads"), [(16, 3), (20, 5), (100, 4), (1, 7)])
def test_the_width_that_is_proposed_is_taken(kind: Any, width: int, heads: int) -> None:
    build = kind if isinstance(kind, partial) else partial(kind, 1)
    with torch.device("meta"):
        with pytest.raises(ValueError, match="must be a multiple of") as raised:
            build(width, heads)
        build(int(re.findall(r"Try (\d+)", str(raised.value))[0]), heads)


@pytest.mark.parametrize("name", SMALL)
def test_what_builds_no_neuron_and_what_is_no_image_is_refused(name: str) -> None:
    for build, problem in ((snn.LIF(64), "got a module, LIF"), (4, "got 4")):
        with pytest.raises(TypeError, match=f"neuron .*{problem}.*lambda n, dim: "):
            SMALL[name][0](neuron=build)
    net, x = network(name)
    with pytest.raises(ValueError, match=r"5 dimensions.*tt\.unroll"):
        net(x)
    with pytest.raises(ValueError, match=r"\[B, C, H, W\], got 3 dimensions: \[2, .*\]\.$"):
        net(x[0, 0])


def test_integrate_and_fire_sums_its_input() -> None:
    boxcar = tt.functional.boxcar_surrogate()
    layer = models.IF(2, pos_threshold=2.0, dim=-2, surrogate_derivative=boxcar)
    x = torch.tensor([1.0, 0.5]).view(2, 1).expand(5, 3, 2, 1).clone().requires_grad_()
    y = tt.unroll(layer, x)
    assert y[:, 0, :, 0].T.tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]
    assert not list(layer.parameters())
    y[2].sum().backward()
    # 0.5 above the threshold there, at the edge of the surrogate: none; the other is at -0.5
    assert not x.grad.any()
