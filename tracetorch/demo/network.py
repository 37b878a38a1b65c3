"""The network: two spiking convolutions, and a readout that averages what they say over time."""

from __future__ import annotations

from torch import Tensor, nn

from tracetorch import snn, unroll


class ConvSNN(snn.TTModule):
    """Convolutional spiking network for 28x28 grey images.

    Calling it runs one time step, like any traceTorch layer. The image is fed as a constant
    current; the first neurons turn it into spikes.

    Shape:
        Input ``[B, 1, 28, 28]``; output ``[B, 10]``, one logit per class.

    Example:
        >>> model = ConvSNN()
        >>> model(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> model.zero_states()

    """

    def __init__(self) -> None:
        super().__init__()
        # pooled before it reaches the neurons, which are then a quarter as many;
        # beta 0.5 forgets within a few steps, as there are only a few
        self.conv1 = nn.Sequential(nn.Conv2d(1, 16, 5), nn.MaxPool2d(2))
        self.lif1 = snn.LIF(16, beta=0.5, dim=-3)
        self.conv2 = nn.Sequential(nn.Conv2d(16, 64, 5), nn.MaxPool2d(2))
        self.lif2 = snn.LIF(64, beta=0.5, dim=-3)
        self.linear = nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, 10))
        self.readout = snn.Readout(10, beta=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """One time step."""
        x = self.lif1(self.conv1(x))  # [B, 16, 12, 12]
        x = self.lif2(self.conv2(x))  # [B, 64, 4, 4]
        x = self.readout(self.linear(x))  # [B, 10]
        return x  # noqa: RET504 (named for its shape)


def run(model: ConvSNN, images: Tensor, steps: int) -> Tensor:
    """Show every image for ``steps`` time steps, starting from empty states.

    All time steps of a layer are run at once: see ``tracetorch.unroll``.

    Args:
        model: the network.
        images: a batch ``[B, 1, 28, 28]``.
        steps: number of time steps T.

    Shape:
        Output ``[T, B, 10]``: the readout at every step. Its mean over time classifies.

    """
    model.zero_states()
    readout: Tensor = unroll(model, images, steps=steps)
    return readout


def spikes_of(model: ConvSNN, images: Tensor, steps: int) -> tuple[dict[str, Tensor], Tensor]:
    """Run the network and keep what its spiking layers send.

    Args:
        model: the network.
        images: a batch ``[B, 1, 28, 28]``.
        steps: number of time steps T.

    Shape:
        Spikes by layer, ``[T, B, C, H, W]`` each, and the readout ``[T, B, 10]``.

    """
    model.zero_states()
    readout, sent = unroll(model, images, steps=steps, record="lif*.output")
    return {path.removesuffix(".output"): spikes for path, spikes in sent.items()}, readout
