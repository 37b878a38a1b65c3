"""``SpikeDrivenTransformer``: attention by masks and additions, shortcuts that carry currents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracetorch.models import parts
from tracetorch.models.neuron import NeuronBuilder
from tracetorch.models.parts import Images, conv_norm, describe_network
from tracetorch.models.spikformer import builders, linear_head
from tracetorch.snn.module import TTModule


@describe_network
class SpikeDrivenTransformer(TTModule):
    """Spike-driven Transformer (v1): no product but of a weight and a spike.

    ::

        image -> three times [3 x 3 convolution, norm, neuron, max-pool]
              -> convolution, norm, max-pool
              -> x = x + (neuron, convolution, norm)(x)                      the position of a patch
              -> blocks:  x = x + attention(x);  x = x + (neuron, W, norm) twice (x)
              -> mean over patches -> neuron -> linear

        attention:  s = neuron(x);  q, k, v = neurons(norm(W s))
            mask = neuron(sum of k * v over patches);  output = norm(W (q * mask))

    Every channel is a head of its own: the spikes that its keys and values share, over all patches,
    decide whether its queries pass. Shortcuts carry currents, as in :class:`MSResNet`.

    Args:
        depth: number of blocks.
        width: channels of a patch; a multiple of 8.
        images: ``"imagenet"``, patches of 16 x 16; ``"small"`` for some 32 x 32, patches of 4 x 4.

    Example:
        >>> import tracetorch as tt
        >>> net = SpikeDrivenTransformer(1, 16, 10, images="small")
        >>> tt.unroll(net, torch.rand(2, 3, 16, 16), steps=4).mean(0).shape
        torch.Size([2, 10])

    Reference: Yao, Hu, Zhou, Yuan, Tian, Xu and Li, Spike-driven transformer, NeurIPS 2023.
    """

    def __init__(
        self,
        depth: int = 8,
        width: int = 384,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        images: Images = "imagenet",
        neuron: NeuronBuilder | None = None,
        attention: NeuronBuilder | None = None,
    ) -> None:
        super().__init__()
        parts.check_multiple("width", width, 8)
        parts.check_images(images)
        build, build_attention = builders(neuron, attention)
        layers: list[nn.Module] = []
        inputs = in_channels
        for place, outputs in enumerate((width // 8, width // 4, width // 2, width)):
            layers += conv_norm(inputs, outputs)
            if outputs < width:
                layers.append(build(outputs, dim=-3))
            if images == "imagenet" or place > 1:
                layers.append(nn.MaxPool2d(3, 2, padding=1))
            inputs = outputs
        self.patches = nn.Sequential(*layers)
        self.position = nn.Sequential(build(width, dim=-3), *conv_norm(width, width))
        blocks = (SpikeDrivenBlock(width, build, build_attention) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.neuron = build(width, dim=-1)
        self.head = linear_head(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        parts.check_image(x)
        x = self.patches(x)
        x = self.blocks(x + self.position(x))
        logits: Tensor = self.head(self.neuron(x.mean((-2, -1))))
        return logits


class SpikeDrivenBlock(nn.Module):
    """Spike-driven self-attention (SDSA) and two layers, each added to the current it is given."""

    def __init__(self, width: int, build: NeuronBuilder, build_attention: NeuronBuilder) -> None:
        super().__init__()
        self.qkv = nn.Sequential(
            build(width, dim=-3), *conv_norm(width, 3 * width, 1), build(3 * width, dim=-3)
        )
        self.attended = build_attention(width, dim=-1)
        self.project = nn.Sequential(*conv_norm(width, width, 1, bias=True))
        self.mlp = nn.Sequential(
            build(width, dim=-3),
            *conv_norm(width, 4 * width, 1, bias=True),
            build(4 * width, dim=-3),
            *conv_norm(4 * width, width, 1, bias=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=1)
        # as a product, for tt.metrics to count
        shared = torch.einsum("bchw,bchw->bc", k, v)
        x = x + self.project(q * self.attended(shared)[..., None, None])
        added: Tensor = x + self.mlp(x)
        return added
