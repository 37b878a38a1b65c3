"""Draw every plot of ``tt.plot`` for a small network that learns to distinguish two tones.

    python examples/gallery.py --out runs/gallery

The task: 8 channels of noise over 60 steps, in which a fast or a slow wave is hidden; the network
classifies it at the last step. It takes a few seconds, and needs the extra ``plot``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import snn

STEPS, CHANNELS, HIDDEN = 60, 8, 32


def waves(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw noisy waves ``[T, B, C]`` and their labels ``[B]``."""
    label = torch.randint(0, 2, (batch,), generator=generator)
    period = torch.where(label == 0, 6.0, 12.0)
    start = 2 * torch.pi * torch.rand(batch, generator=generator)
    time = torch.arange(STEPS)[:, None]
    wave = torch.sin(2 * torch.pi * time / period + start)
    noise = torch.randn(STEPS, batch, CHANNELS, generator=generator)
    return wave[..., None] + 0.7 * noise, label


def network() -> nn.Sequential:
    """Build two spiking layers, the second with spikes of both signs, and a readout."""
    halflife = torch.logspace(0.0, 1.3, HIDDEN)
    return nn.Sequential(
        nn.Linear(CHANNELS, HIDDEN),
        snn.LIF(HIDDEN, beta=tt.functional.halflife_to_decay(halflife)),
        nn.Linear(HIDDEN, HIDDEN),
        snn.BSRLIF(HIDDEN, beta=tt.functional.halflife_to_decay(halflife)),
        nn.Linear(HIDDEN, 2),
        snn.Readout(2, beta=0.9),
    )


def train(model: nn.Sequential, rounds: int, generator: torch.Generator) -> list[float]:
    """Train for some rounds; return the losses."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(rounds):
        x, label = waves(64, generator)
        tt.zero_states(model)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(tt.unroll(model, x)[-1], label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def moving_bar() -> Tensor:
    """Return events ``[T, 1, 2, 32, 32]`` of a moving bar: off ahead of it, on behind it."""
    bar = torch.stack([torch.arange(32).sub(step).abs() < 3 for step in range(-3, 36)]).float()
    change = bar.diff(dim=0)[:, None, :].expand(-1, 32, -1)
    return torch.stack([(change > 0).float(), (change < 0).float()], 1)[:, None]


def main() -> None:
    """Train the network, draw the plots and save them."""
    parser = argparse.ArgumentParser(description="Draw every plot of tt.plot.")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gallery"), help="folder of the plots"
    )
    parser.add_argument("--rounds", type=int, default=150, help="training rounds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)

    model = network()
    # kept to compare half-lives before and after training
    before = tt.plot.decays(model)
    losses = train(model, options.rounds, generator)
    first, second, _ = (layer for layer in model if isinstance(layer, snn.Neuron))

    x, label = waves(16, generator)
    tt.zero_states(model)
    logits, seen = tt.unroll(model, x, record=["mem", "syn", "output"])
    spikes = {path: seen[path] for path in ("1.output", "3.output")}
    outputs = {path: value for path, value in seen.items() if path.endswith("output")}
    loss = nn.functional.cross_entropy(logits[-1], label)
    # gradients of the loss with respect to the spikes of every layer
    slopes = torch.autograd.grad(loss, list(outputs.values()))

    measured = tt.plot.MeasurementManager("loss")
    for value in losses:
        measured.append(value)

    axes: dict[str, Any] = {
        "raster": tt.plot.raster(spikes, title="spikes of one sample"),
        "raster_busiest": tt.plot.raster(seen["3.output"], limit=12),
        "state_trace": tt.plot.state_trace(
            seen["1.mem"], neurons=[8, 12], spikes=seen["1.output"], thresholds=first
        ),
        "states_of_a_neuron": tt.plot.state_trace(
            {"3.mem": seen["3.mem"], "3.syn": seen["3.syn"]},
            neurons=2,
            spikes=seen["3.output"],
            thresholds=second,
        ),
        "rate_histogram": tt.plot.rate_histogram(spikes),
        "rate_map": tt.plot.rate_map(spikes, window=2),
        "halflives": tt.plot.halflives(before, model, title="before and after training"),
        "surrogate_curves": tt.plot.surrogate_curves(),
        "gradient_flow": tt.plot.gradient_flow(dict(zip(outputs, slopes, strict=True))),
        "spike_train": tt.plot.spike_train(list(seen["1.output"][:, 0].T)),
        "line_graph": tt.plot.line_graph(losses, "training", "loss", xlabel="round"),
        "measurement_manager": measured.plot(),
        "distributions": tt.plot.distributions(
            {
                "1.weight": model.get_parameter("2.weight"),
                "3.weight": model.get_parameter("4.weight"),
            },
            "weights",
        ),
        "render_image": tt.plot.render_image(
            model.get_parameter("0.weight"), title="first weights"
        ),
    }
    axes["learning_curves"] = tt.plot.learning_curves(
        {"loss": losses}, best="lowest", xlabel="round", ylabel="loss"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for name, ax in axes.items():
        ax.figure.savefig(options.out / f"{name}.png", dpi=110, metadata={"Software": None})
    tt.plot.save_animation(moving_bar(), options.out / "events.gif", title="a bar passes")
    tt.plot.save_animation(moving_bar(), options.out / "events.html", title="a bar passes")
    film = tt.plot.animate_run(
        spikes, seen["1.mem"], neurons=[8, 12], thresholds=first, limit=16, dt=1.0, stride=2
    )
    tt.plot.save_animation(film, options.out / "run.gif")
    tt.plot.save_html(seen, options.out / "run.html", title="Two tones")
    tt.plot.save_playground(first, options.out / "neuron.html", title="A neuron of the network")
    tt.plot.show_html(options.out / "run.html")  # in a notebook, as the last value of a cell
    right = (logits[-1].argmax(1) == label).float().mean().item()
    print(f"{right:.0%} of 16 right; {len(axes) + 5} pictures and pages in {options.out}")


if __name__ == "__main__":
    main()
