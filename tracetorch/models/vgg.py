"""``SpikingVGG``: a plain stack of 3 x 3 convolutions with neurons between."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tracetorch.core.checks import check_choice
from tracetorch.models import parts
from tracetorch.models.neuron import NeuronBuilder, transformer_neuron
from tracetorch.models.parts import Images, describe_network
from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.module import TTModule

# the number of convolutions between two pools; their channels are 1, 2, 4, 8 and 8 times the width
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


@describe_network
class SpikingVGG(TTModule):
    """Spiking VGG 11, 13, 16 or 19.

    ::

        image -> five times: (convolution, norm, neuron) one to four times, max-pool
              -> linear layers

    Without shortcuts: the baseline that residual networks are compared with.

    Args:
        depth: number of layers with weights, 11, 13, 16 or 19.
        images: ``"imagenet"``, a head of three linear layers on 7 x 7 places; ``"small"`` for
            32 x 32, a mean over places and one linear layer.
        width: channels of the first convolution; a 64th of the hidden linear layers.
        norm: whether a batch norm follows each convolution.
        dropout: share of the spikes of the hidden linear layers that are dropped in training, the
            same ones at every step; in [0, 1].
        neuron: builds each neuron layer; an LIF with a time constant of two steps if left out.

    Shape:
        One time step: ``[B, in_channels, H, W]``, of 32 x 32 at least, to ``[B, num_classes]``.
        Average over time.

    Example:
        >>> import tracetorch as tt
        >>> net = SpikingVGG(11, 10, images="small", width=4)
        >>> tt.unroll(net, torch.rand(2, 3, 32, 32), steps=4).mean(0).shape
        torch.Size([2, 10])

    Reference: Simonyan and Zisserman, Very deep convolutional networks for large-scale image
    recognition, ICLR 2015; Sengupta, Ye, Wang, Liu and Roy, Going deeper in spiking neural
    networks, Frontiers in Neuroscience 13 (2019).
    """

    def __init__(
        self,
        depth: Literal[11, 13, 16, 19] = 11,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        images: Images = "imagenet",
        width: int = 64,
        norm: bool = True,
        dropout: float = 0.5,
        neuron: NeuronBuilder | None = None,
    ) -> None:
        super().__init__()
        check_choice("depth", depth, tuple(CONVOLUTIONS))
        parts.check_images(images)
        build = transformer_neuron if neuron is None else parts.check_builder("neuron", neuron)
        layers: list[nn.Module] = []
        inputs = in_channels
        for factor, count in zip((1, 2, 4, 8, 8), CONVOLUTIONS[depth], strict=True):
            for _ in range(count):
                outputs = factor * width
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                if norm:
                    layers.append(nn.BatchNorm2d(outputs))
                layers.append(build(outputs, dim=-3))
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        if images == "imagenet":
            hidden = 64 * width
            self.pool = nn.AdaptiveAvgPool2d(7)
            self.head = nn.Sequential(
                nn.Linear(inputs * 7 * 7, hidden),
                build(hidden, dim=-1),
                LockedDropout(hidden, dropout),
                nn.Linear(hidden, hidden),
                build(hidden, dim=-1),
                LockedDropout(hidden, dropout),
                nn.Linear(hidden, num_classes),
            )
        else:
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.head = nn.Sequential(nn.Linear(inputs, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        parts.check_image(x)
        logits: Tensor = self.head(self.pool(self.features(x)).flatten(1))
        return logits
