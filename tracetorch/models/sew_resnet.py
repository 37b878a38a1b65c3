"""``SEWResNet``: a residual network whose blocks add spikes to spikes."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tracetorch.core.checks import check_choice
from tracetorch.models import parts
from tracetorch.models.neuron import IF, NeuronBuilder
from tracetorch.models.parts import Images, conv_norm, describe_network
from tracetorch.snn.module import TTModule
from tracetorch.snn.residual import Combination, SEWBlock

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    # of bottlenecks
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


@describe_network
class SEWResNet(TTModule):
    """Spike-element-wise residual network (SEW-ResNet) 18, 34, 50, 101 or 152.

    ::

        image -> 7 x 7 convolution, norm, neuron, max-pool -> four stages of blocks
              -> mean -> linear
        block:   output = combine(spikes of (convolution, norm, neuron) two or three times,
                                  input or spikes of a strided 1 x 1 convolution)

    Each stage after the first halves the image and doubles the channels. With ``"add"`` a block is
    an identity where its convolutions are silent, and gradients pass through any depth. The stride
    of a bottleneck (50 and deeper) is in its 3 x 3 convolution.

    Args:
        depth: 18 or 34, or 50, 101 or 152, which have bottlenecks.
        images: ``"imagenet"``, a stem that divides the image by 4; ``"small"`` for some 32 x 32, a
            3 x 3 convolution that keeps its size.
        width: channels of the first stage.
        combine: how a block combines spikes: ``"add"``, ``"and"`` or ``"iand"``, as
            :class:`~tracetorch.snn.SEWBlock`.
        neuron: builds each neuron layer; :class:`IF` if left out, as in the paper.

    Example:
        >>> import tracetorch as tt
        >>> net = SEWResNet(18, 10, images="small", width=8)
        >>> tt.unroll(net, torch.rand(2, 3, 16, 16), steps=4).mean(0).shape
        torch.Size([2, 10])

    Reference: Fang, Yu, Chen, Huang, Masquelier and Tian, Deep residual learning in spiking neural
    networks, NeurIPS 2021.
    """

    def __init__(
        self,
        depth: Literal[18, 34, 50, 101, 152] = 18,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        images: Images = "imagenet",
        width: int = 64,
        combine: Combination = "add",
        neuron: NeuronBuilder | None = None,
    ) -> None:
        super().__init__()
        check_choice("depth", depth, tuple(BLOCKS))
        parts.check_images(images)
        build = IF if neuron is None else parts.check_builder("neuron", neuron)
        if images == "imagenet":
            stem = conv_norm(in_channels, width, kernel=7, stride=2)
            self.stem = nn.Sequential(*stem, build(width, dim=-3), nn.MaxPool2d(3, 2, padding=1))
        else:
            self.stem = nn.Sequential(*conv_norm(in_channels, width), build(width, dim=-3))

        body, expansion = (bottleneck, 4) if depth >= 50 else (basic, 1)
        stages, inputs = [], width
        for stage, blocks in enumerate(BLOCKS[depth]):
            inner = width * 2**stage
            outputs = inner * expansion
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                shortcut = None
                if stride > 1 or inputs != outputs:
                    layers = conv_norm(inputs, outputs, kernel=1, stride=stride)
                    shortcut = nn.Sequential(*layers, build(outputs, dim=-3))
                stages.append(SEWBlock(body(inputs, inner, stride, build), combine, shortcut))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        parts.check_image(x)
        x = self.blocks(self.stem(x))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


def basic(inputs: int, width: int, stride: int, build: NeuronBuilder) -> nn.Sequential:
    """Build two 3 x 3 convolutions, each with a norm and a neuron."""
    return nn.Sequential(
        *conv_norm(inputs, width, stride=stride),
        build(width, dim=-3),
        *conv_norm(width, width),
        build(width, dim=-3),
    )


def bottleneck(inputs: int, width: int, stride: int, build: NeuronBuilder) -> nn.Sequential:
    """Build convolutions of 1 x 1, 3 x 3 and 1 x 1 with fewer channels between."""
    return nn.Sequential(
        *conv_norm(inputs, width, kernel=1),
        build(width, dim=-3),
        *conv_norm(width, width, stride=stride),
        build(width, dim=-3),
        *conv_norm(width, 4 * width, kernel=1),
        build(4 * width, dim=-3),
    )
