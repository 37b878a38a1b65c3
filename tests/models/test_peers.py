"""Networks equal SpikingJelly's: weights copied, outputs, states, statistics and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import few
from tracetorch import models, snn

pytest.importorskip("spikingjelly.activation_based")
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import (
    ms_resnet,
    qkformer,
    sew_resnet,
    spike_driven_transformer,
    spikformer,
    spiking_vgg,
)

T, B = 3, 2
SURROGATE = surrogate.ATan(2.0)

# a module here, and its counterpart, or those whose channels it holds in turn
Pairs = Iterator[tuple[Any, Any]]


def sew_pairs(ours: Any, theirs: Any) -> Pairs:
    yield from zip(ours.stem[:3], (theirs.conv1, theirs.bn1, theirs.sn1), strict=True)
    stages = (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)
    for our, their in zip(ours.blocks, [b for stage in stages for b in stage], strict=True):
        for place, part in enumerate(our.body):
            yield part, getattr(their, f"{('conv', 'bn', 'sn')[place % 3]}{place // 3 + 1}")
        if their.downsample is not None:
            yield from zip(our.shortcut, (*their.downsample, their.downsample_sn), strict=True)
    yield ours.head, theirs.fc


def ms_pairs(ours: Any, theirs: Any) -> Pairs:
    yield from zip(ours.stem, theirs.stem, strict=True)
    stages = (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)
    for our, their in zip(ours.blocks, [b for stage in stages for b in stage], strict=True):
        names = ("spike1", "conv1", "bn1", "spike2", "conv2", "bn2")
        yield from zip(our.body, [getattr(their, name) for name in names], strict=True)
        if their.downsample is not None:
            yield from zip(our.shortcut, their.downsample, strict=True)
    yield ours.neuron, theirs.head_lif
    yield ours.head, theirs.head


def vgg_pairs(ours: Any, theirs: Any) -> Pairs:
    yield from zip(ours.features, theirs.features, strict=True)
    yield from zip(ours.head, theirs.classifier, strict=True)


def mlp_pairs(ours: Any, theirs: Any) -> Pairs:
    """The two layers of a Spikformer's or a QKFormer's block."""
    if hasattr(theirs, "neuron1"):
        parts = [*theirs.fc1, theirs.neuron1, *theirs.fc2, theirs.neuron2]
    else:
        parts = [getattr(theirs, f"{name}{n}") for n in (1, 2) for name in ("fc", "bn", "lif")]
    yield from zip(ours, parts, strict=True)


def attention_pairs(ours: Any, theirs: Any) -> Pairs:
    name = "qkv" if hasattr(theirs, "qkv_lif") else "qk"
    parts = (*getattr(theirs, f"{name}_conv_bn"), getattr(theirs, f"{name}_lif"))
    yield from zip(getattr(ours, name), parts, strict=True)
    yield ours.attended, theirs.attn_lif
    yield from zip(ours.project, (*theirs.proj_conv_bn, theirs.proj_lif), strict=True)


def block_pairs(ours: Any, theirs: Any) -> Pairs:
    yield from attention_pairs(ours.attention, theirs.attn)
    yield from mlp_pairs(ours.mlp, theirs.mlp)


def spikformer_pairs(ours: Any, theirs: Any) -> Pairs:
    stages = [*theirs.patch_embed.stages, theirs.patch_embed.positional_encoding]
    parts = [part for stage in stages for part in (*stage.conv_bn.block, stage.neuron)]
    both = ([*ours.patches, *ours.position], parts)
    unpooled = ([p for p in each if not isinstance(p, nn.MaxPool2d)] for each in both)
    yield from zip(*unpooled, strict=True)
    for our, their in zip(ours.blocks, theirs.blocks, strict=True):
        yield from block_pairs(our, their)
    yield ours.head, theirs.head


def qkformer_pairs(ours: Any, theirs: Any) -> Pairs:
    embed = theirs.patch_embed1
    conv, norm, _, lif = ours.stages[:4]
    yield from zip((conv, norm, lif), (embed.conv1, embed.bn1, embed.lif1), strict=True)
    embeds = {
        0: (embed, ("conv2", "bn2", "pool2", "lif2", "conv3", "bn3", "lif3")),
        1: (theirs.patch_embed2, ("conv1", "bn1", "pool", "lif1", "conv2", "bn2", "lif2")),
        2: (theirs.patch_embed3, ("conv1", "bn1", "pool", "lif1", "conv2", "bn2", "lif2")),
    }
    stages = list(ours.stages[4:])
    for stage, their_blocks in enumerate((theirs.stage1, theirs.stage2, theirs.stage3)):
        their_embed, names = embeds[stage]
        residual = stages.pop(0)
        yield from zip(residual.body, [getattr(their_embed, n) for n in names], strict=True)
        yield from zip(residual.shortcut, their_embed.shortcut, strict=True)
        for their in their_blocks:
            yield from block_pairs(stages.pop(0), their)
    assert not stages
    yield ours.head, theirs.head


def spike_driven_pairs(ours: Any, theirs: Any) -> Pairs:
    embed = theirs.patch_embed
    parts = [part for stage in (*embed.stages, embed.final_stage) for part in stage]
    yield from zip(ours.patches, parts, strict=True)
    yield from zip(ours.position, (embed.final_lif, embed.rpe_conv, embed.rpe_bn), strict=True)
    for our, their in zip(ours.blocks, theirs.blocks, strict=True):
        a = their.attn
        yield our.qkv[0], a.shortcut_lif
        yield our.qkv[1], (a.q_conv, a.k_conv, a.v_conv)
        yield our.qkv[2], (a.q_bn, a.k_bn, a.v_bn)
        yield our.qkv[3], (a.q_lif, a.k_lif, a.v_lif)
        yield our.attended, a.attn_lif
        yield from zip(our.project, (a.proj_conv, a.proj_bn), strict=True)
        names = ("lif1", "fc1", "bn1", "lif2", "fc2", "bn2")
        yield from zip(our.mlp, [getattr(their.mlp, name) for name in names], strict=True)
    yield ours.neuron, theirs.head_lif
    yield ours.head, theirs.head


class Case(NamedTuple):
    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    pairs: Callable[[Any, Any], Pairs]
    over_time: bool  # whether the peer returns an output for each step


def sew(block: Any, layers: list[int], combine: str) -> nn.Module:
    kinds = {"v_threshold": 1.0, "detach_reset": True, "surrogate_function": SURROGATE}
    made = sew_resnet.SEWResNet(
        block, layers, num_classes=5, cnf=combine, spiking_neuron=neuron.IFNode, **kinds
    )
    functional.set_step_mode(made, "m")
    return made


def vgg(norm: bool) -> nn.Module:
    """SpikingJelly's, with narrow linear layers; it has no others than those of ImageNet."""
    with torch.device("meta"):  # its own have 100 million weights
        cfg = [4, "M", 8, "M", 16, 16, "M", 32, 32, "M", 32, 32, "M"]
        kinds = {"spiking_neuron": neuron.LIFNode, "detach_reset": True}
        made = spiking_vgg.SpikingVGG(cfg=cfg, batch_norm=norm, **kinds)
    sizes = (32 * 7 * 7, 256, 256)
    parts: list[nn.Module] = []
    for into, out in pairwise(sizes):
        parts += [layer.Linear(into, out), neuron.LIFNode(detach_reset=True), layer.Dropout(0.0)]
    made.classifier = nn.Sequential(*parts, layer.Linear(256, 5))
    made.to_empty(device="cpu")
    for module in made.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    functional.set_step_mode(made, "m")
    return made


RECT = surrogate.Rect(alpha=1.0)  # the paper's; SpikingJelly's is half as wide
BASIC, BOTTLENECK = sew_resnet.BasicBlock, sew_resnet.Bottleneck
COMBINATIONS: tuple[Literal["add", "and", "iand"], ...] = ("add", "and", "iand")
IMAGES: tuple[tuple[Literal["imagenet", "small"], int, str], ...] = (
    ("imagenet", 16, "1111"),
    ("small", 4, "0011"),
)


def transformers(kind: Any, **arguments: Any) -> Callable[[], nn.Module]:
    return partial(kind, num_classes=5, detach_reset=True, **arguments)


bottlenecks = partial(sew, BOTTLENECK, [3, 4, 6, 3], "ADD")
peer = transformers(qkformer.QKFormer, embed_dims=64, num_heads=(2, 2, 2), depths=(1, 2, 1))
our = partial(models.QKFormer, (1, 2, 1), 64, 2, 5)
CASES = {
    "sew-50": Case(partial(models.SEWResNet, 50, 5), bottlenecks, sew_pairs, True),
    "qkformer": Case(our, peer, qkformer_pairs, False),
}
for combine in COMBINATIONS:
    ours = partial(models.SEWResNet, 18, 5, combine=combine)
    theirs = partial(sew, BASIC, [2, 2, 2, 2], combine.upper())
    CASES[f"sew-18-{combine}"] = Case(ours, theirs, sew_pairs, True)
for depth, layers in (18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)):
    given = {"num_classes": 5, "base_channels": 8, "layers": layers, "surrogate_function": RECT}
    net = partial(models.MSResNet, depth, 5, width=8)  # type: ignore[arg-type]
    CASES[f"ms-{depth}"] = Case(net, partial(ms_resnet.MSResNet, **given), ms_pairs, False)
for norm in (True, False):
    made = partial(models.SpikingVGG, 11, 5, width=4, norm=norm, dropout=0.0)
    name = f"vgg-11-{'norm' if norm else 'plain'}"
    CASES[name] = Case(made, partial(vgg, norm), vgg_pairs, True)
for images, patch, pools in IMAGES:
    shape = {"embed_dims": 32, "depths": 2}
    CASES[f"spikformer-{images}"] = Case(
        partial(models.Spikformer, 2, 32, 2, 5, images=images, pool_first=True),
        transformers(spikformer.Spikformer, patch_size=patch, num_heads=2, **shape),
        spikformer_pairs,
        True,
    )
    driven = spike_driven_transformer.SpikeDrivenTransformer
    CASES[f"spike-driven-{images}"] = Case(
        partial(models.SpikeDrivenTransformer, 2, 32, 5, images=images),
        transformers(driven, num_heads=4, pooling_stat=pools, **shape),
        spike_driven_pairs,
        False,
    )


def several(their: Any) -> Any:
    return their if isinstance(their, tuple) else (their,)


def joined(their: Any, name: str, dim: int = 0) -> Tensor | None:
    tensors = [getattr(each, name, None) for each in several(their)]
    return None if tensors[0] is None else torch.cat(tensors, dim)


def copied(case: Case) -> tuple[Any, Any, list[tuple[Any, Any]]]:
    """Build both, with the peer's weights drawn so that all fire, and copied into ours."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # constants are kept as logits, rounded to it
    try:
        theirs: Any = case.theirs()
        ours: Any = case.ours()
    finally:
        torch.set_default_dtype(before)
    pairs = list(case.pairs(ours, theirs))
    norms = [m for m in theirs.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and not norms):
                module.weight *= 6
                module.bias += 1.0
        for norm in norms:
            norm.weight.uniform_(1.0, 2.0)
            norm.bias.uniform_(0.0, 1.0)
            norm.momentum = 1.0
        theirs.train()
        theirs(torch.randn(T, B, 3, 32, 32, dtype=torch.float64))  # statistics of inputs like these
        functional.reset_net(theirs)
        for norm in norms:
            norm.momentum = 0.1
        for our, their in pairs:
            for name in ("weight", "bias", "running_mean", "running_var"):
                target, source = getattr(our, name, None), joined(their, name)
                if isinstance(our, snn.SequenceLayer) or (target is None and source is None):
                    continue
                if target is None:  # a bias that the norm behind it takes off, and papers have not
                    their.bias.zero_()
                elif source is None:
                    target.zero_()
                else:
                    target.copy_(source.view_as(target))
    return ours, theirs, pairs


# of full width, as the peer has no other; what combines is tested in tests/snn/test_populations.py
FAST = CASES.keys() - {"sew-50", "sew-18-and", "sew-18-iand"}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", few(sorted(CASES), *FAST))
def test_a_network_equals_its_peer(name: str, training: bool) -> None:
    case = CASES[name]
    ours, theirs, pairs = copied(case)
    ours.train(training)
    theirs.train(training)
    torch.manual_seed(1)
    x = torch.randn(T, B, 3, 32, 32, dtype=torch.float64)

    functional.reset_net(theirs)
    expected = theirs(x)
    y = tt.unroll(ours, x)
    assert y.shape == (T, B, 5)
    mean = y if case.over_time else y.mean(0)
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-10)
    assert (expected[..., 0, :] != expected[..., 1, :]).all()

    if training:
        torch.manual_seed(2)
        cotangent = torch.randn_like(expected)
        (expected * cotangent).sum().backward()
        (mean * cotangent).sum().backward()
    neurons = active = compared = 0
    for our, their in pairs:
        if isinstance(our, snn.Neuron) and hasattr(our, "mem"):
            count = len(several(their))
            neurons += count
            state = joined(their, "v", 1)
            torch.testing.assert_close(our.mem, state.view_as(our.mem), rtol=1e-9, atol=1e-10)
            active += count * bool(our.mem.any())
        for statistic in ("running_mean", "running_var"):
            if getattr(our, statistic, None) is not None:
                torch.testing.assert_close(getattr(our, statistic), joined(their, statistic))
        for name in ("weight", "bias"):
            parameter = getattr(our, name, None)
            if not training or parameter is None or joined(their, name) is None:
                continue
            if not isinstance(our, snn.SequenceLayer):
                grads = [getattr(each, name).grad for each in several(their)]
                grad = torch.cat(grads).view_as(parameter)
                scale = grad.abs().max().item()
                atol = 1e-5 * scale + 1e-12
                torch.testing.assert_close(parameter.grad, grad, rtol=1e-5, atol=atol)
                compared += bool(scale)
    assert neurons == sum(isinstance(m, neuron.BaseNode) for m in theirs.modules())
    assert active > 0.8 * neurons
    assert compared > 5 or not training
