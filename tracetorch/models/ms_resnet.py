"""``MSResNet``: a residual network whose blocks add currents, not spikes."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tracetorch.core.checks import check_choice
from tracetorch.models import parts
from tracetorch.models.neuron import NeuronBuilder, membrane_neuron
from tracetorch.models.parts import Images, conv_norm, describe_network
from tracetorch.snn.module import TTModule

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 104: (3, 8, 32, 8)}


@describe_network
class MSResNet(TTModule):
    """Membrane-shortcut residual network (MS-ResNet) 18, 34 or 104.

    ::

        image -> 7 x 7 convolution, norm -> four stages of blocks -> neuron -> mean -> linear
        block:   output = (neuron, convolution, norm) twice + input, or a 1 x 1 convolution of it

    Neurons stand before the convolutions, and what a block adds to is the current that flows on: no
    neuron lies on the way from the image to the last layer, and every convolution but the first and
    those of shortcuts sees spikes of 0 and 1 alone. Norms start at the threshold, 0.5, the last of
    a block at 0.

    The 104 has the stem and the shortcuts of the others, and so the 77.28 million parameters that
    are printed of it. The authors' code has three 3 x 3 convolutions in its stem, which makes 77.35
    million, means over 2 x 2 before its shortcuts, and a dropout of 0.2 before its last layer.

    Args:
        depth: 18, 34 or 104, all of blocks of two 3 x 3 convolutions.
        images: ``"imagenet"``, a stem and a first stage that halve the image each; ``"small"`` for
            some 32 x 32, a 3 x 3 convolution and a first stage that keep its size.
        width: channels of the first stage.
        neuron: builds each neuron layer; an LIF that keeps a quarter of its membrane, with a
            threshold of 0.5, if left out, as in the paper.

    Example:
        >>> import tracetorch as tt
        >>> net = MSResNet(18, 10, images="small", width=8)
        >>> tt.unroll(net, torch.rand(2, 3, 16, 16), steps=4).mean(0).shape
        torch.Size([2, 10])

    Reference: Hu, Deng, Wu, Yao and Li, Advancing spiking neural networks toward deep residual
    learning, IEEE Transactions on Neural Networks and Learning Systems 36 (2025), arXiv:2112.08954.
    """

    def __init__(
        self,
        depth: Literal[18, 34, 104] = 18,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        images: Images = "imagenet",
        width: int = 64,
        neuron: NeuronBuilder | None = None,
    ) -> None:
        super().__init__()
        check_choice("depth", depth, tuple(BLOCKS))
        parts.check_images(images)
        build = membrane_neuron if neuron is None else parts.check_builder("neuron", neuron)
        kernel, stride = (7, 2) if images == "imagenet" else (3, 1)
        self.stem = nn.Sequential(*conv_norm(in_channels, width, kernel, stride))
        blocks, inputs = [], width
        for stage, count in enumerate(BLOCKS[depth]):
            outputs = width * 2**stage
            for block in range(count):
                blocks.append(MembraneBlock(inputs, outputs, 1 if block else stride, build))
                inputs = outputs
            stride = 2
        self.blocks = nn.Sequential(*blocks)
        self.neuron = build(inputs, dim=-3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, num_classes)
        last = [block.body[-1] for block in blocks]
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.0 if module in last else 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        parts.check_image(x)
        x = self.neuron(self.blocks(self.stem(x)))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


class MembraneBlock(nn.Module):
    """Residual block that adds the current of its convolutions to the current that it is given."""

    def __init__(self, inputs: int, outputs: int, stride: int, build: NeuronBuilder) -> None:
        super().__init__()
        self.body = nn.Sequential(
            build(inputs, dim=-3),
            *conv_norm(inputs, outputs, stride=stride),
            build(outputs, dim=-3),
            *conv_norm(outputs, outputs),
        )
        self.shortcut = (
            nn.Sequential(*conv_norm(inputs, outputs, kernel=1, stride=stride))
            if stride > 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        current: Tensor = self.body(x) + self.shortcut(x)
        return current
