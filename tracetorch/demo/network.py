"""The network of the demo: two spiking convolutions and a leaky readout."""

from __future__ import annotations

from torch import Tensor, nn

from tracetorch import snn, unroll


class ConvSNN(snn.TTModule):
    """Convolutional spiking network for 28x28 grey images.

    Calling it runs one time step, like any traceTorch layer. The image is a constant input current,
    which the first neurons encode as spikes.

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
        # pooling before the neurons leaves a quarter as many of them; beta is short, 0.5,
        # since a digit is shown for a few steps only
        self.conv1 = nn.Sequential(nn.Conv2d(1, 16, 5), nn.MaxPool2d(2))
        self.lif1 = snn.LIF(16, beta=0.5, dim=-3)
        self.conv2 = nn.Sequential(nn.Conv2d(16, 64, 5), nn.MaxPool2d(2))
        self.lif2 = snn.LIF(64, beta=0.5, dim=-3)
        self.linear = nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, 10))
        self.readout = snn.Readout(10, beta=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        x = self.lif1(self.conv1(x))  # [B, 16, 12, 12]
        x = self.lif2(self.conv2(x))  # [B, 64, 4, 4]
        x = self.readout(self.linear(x))  # [B, 10]
        return x  # noqa: RET504 (named for its shape)


def record_spikes(model: ConvSNN, images: Tensor, steps: int) -> tuple[dict[str, Tensor], Tensor]:
    """Run the network from rest on constant images; return the spikes by layer, and the readout."""
    readout, seen = unroll(model, images, steps=steps, from_rest=True, record="lif*.output")
    return {path.removesuffix(".output"): spikes for path, spikes in seen.items()}, readout
