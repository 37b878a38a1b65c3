"""``Spikformer``: a vision transformer whose queries, keys and values are spikes."""

from __future__ import annotations

import math

from torch import Tensor, nn

from tracetorch.models import parts
from tracetorch.models.neuron import NeuronBuilder, attention_neuron, transformer_neuron
from tracetorch.models.parts import Images, conv_norm, describe_network
from tracetorch.snn.module import TTModule


@describe_network
class Spikformer(TTModule):
    """Spikformer: spiking self-attention without a softmax.

    ::

        image -> patches: four times [3 x 3 convolution, norm, neuron, max-pool]
              -> x = x + (convolution, norm, neuron)(x)                      the position of a patch
              -> blocks:  x = x + attention(x);  x = x + mlp(x)
              -> mean over patches -> linear

        attention:  q, k, v = neurons(norm(W x));  output = neuron(norm(W neuron(q k^T v / 8)))

    Counts of coinciding spikes weigh the values, so nothing needs to be normalised; and as there is
    no softmax, ``k^T v`` comes first, which costs in proportion to the number of patches.

    Args:
        depth: number of blocks.
        width: channels of a patch; a multiple of 8 and of ``heads``.
        heads: attention heads.
        images: ``"imagenet"``, patches of 16 x 16; ``"small"`` for some 32 x 32, patches of 4 x 4.
        pool_first: whether max-pooling comes before the neuron, as SpikingJelly 2.0 has it, and not
            behind it, as the paper.

    Example:
        >>> import tracetorch as tt
        >>> net = Spikformer(1, 16, 2, 10, images="small")
        >>> tt.unroll(net, torch.rand(2, 3, 16, 16), steps=4).mean(0).shape
        torch.Size([2, 10])

    Reference: Zhou, Zhu, He, Wang, Yan, Tian and Yuan, Spikformer: when spiking neural network
    meets transformer, ICLR 2023.
    """

    def __init__(
        self,
        depth: int = 8,
        width: int = 384,
        heads: int = 12,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        images: Images = "imagenet",
        pool_first: bool = False,
        neuron: NeuronBuilder | None = None,
        attention: NeuronBuilder | None = None,
    ) -> None:
        super().__init__()
        parts.check_multiple("width", width, math.lcm(8, heads), f"of 8 and of heads={heads}")
        parts.check_images(images)
        build, build_attention = builders(neuron, attention)
        layers: list[nn.Module] = []
        inputs = in_channels
        for place, outputs in enumerate((width // 8, width // 4, width // 2, width)):
            activation = [build(outputs, dim=-3)]
            if images == "imagenet" or place > 1:
                pool = nn.MaxPool2d(3, 2, padding=1)
                activation.insert(0 if pool_first else 1, pool)
            layers += [*conv_norm(inputs, outputs), *activation]
            inputs = outputs
        self.patches = nn.Sequential(*layers)
        self.position = nn.Sequential(*conv_norm(width, width), build(width, dim=-3))
        attentions = (SelfAttention(width, heads, build, build_attention) for _ in range(depth))
        self.blocks = nn.Sequential(*(TransformerBlock(a, width, build) for a in attentions))
        self.head = linear_head(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        parts.check_image(x)
        x = self.patches(x)
        x = self.blocks(x + self.position(x))
        logits: Tensor = self.head(x.mean((-2, -1)))
        return logits


class SelfAttention(nn.Module):
    """Spiking self-attention (SSA) over the places of an image ``[B, width, H, W]``."""

    def __init__(
        self, width: int, heads: int, build: NeuronBuilder, build_attention: NeuronBuilder
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Sequential(*conv_norm(width, 3 * width, 1), build(3 * width, dim=-3))
        self.attended = build_attention(width, dim=-3)
        self.project = nn.Sequential(*conv_norm(width, width, 1, bias=True), build(width, dim=-3))

    def forward(self, x: Tensor) -> Tensor:
        # each [B, heads, width / heads, patches]
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)
        weighted = (v @ k.mT) @ q * 0.125
        spikes: Tensor = self.project(self.attended(weighted.reshape(x.shape)))
        return spikes


class TransformerBlock(nn.Module):
    """Attention and a network of two layers on every patch, each added to what it is given."""

    def __init__(
        self, attention: nn.Module, width: int, build: NeuronBuilder, hidden: int = 4
    ) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = nn.Sequential(
            *conv_norm(width, hidden * width, 1, bias=True),
            build(hidden * width, dim=-3),
            *conv_norm(hidden * width, width, 1, bias=True),
            build(width, dim=-3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        added: Tensor = x + self.mlp(x)
        return added


def builders(
    neuron: NeuronBuilder | None, attention: NeuronBuilder | None
) -> tuple[NeuronBuilder, NeuronBuilder]:
    """Return what builds the neurons of a transformer, and those behind its attention."""
    if attention is not None:
        parts.check_builder("attention", attention)
    if neuron is None:
        return transformer_neuron, attention or attention_neuron
    return parts.check_builder("neuron", neuron), attention or neuron


def linear_head(width: int, num_classes: int) -> nn.Linear:
    """Build the last layer, with the small weights that transformers start from."""
    head = nn.Linear(width, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
