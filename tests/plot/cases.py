"""A small recording, every plot of it, and the baselines that pictures are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import snn

Plot: TypeAlias = Callable[..., Axes]

BASELINE = Path(__file__).parent / "baseline"
STEPS, BATCH, NEURONS = 24, 3, 5


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def spikes(*shape: int, rate: float = 0.3, seed: int = 0) -> Tensor:
    return (uniform(*shape, seed=seed) < rate).float()


def recording() -> dict[str, Tensor]:
    """Make states and outputs of two layers, the second with spikes of both signs."""
    up, down = spikes(STEPS, BATCH, 4, seed=1), spikes(STEPS, BATCH, 4, rate=0.15, seed=2)
    return {
        "0.mem": uniform(STEPS, BATCH, NEURONS) - 0.3,
        "0.output": spikes(STEPS, BATCH, NEURONS),
        "2.mem": 2 * uniform(STEPS, BATCH, 4, seed=3) - 1,
        "2.output": up - down,
    }


def outputs() -> dict[str, Tensor]:
    return {path: value for path, value in recording().items() if path.endswith("output")}


def model(scale: float = 1.0) -> nn.Module:
    halflife = scale * torch.logspace(0, 1.5, 12)
    return nn.Sequential(
        snn.SLIF(12, alpha=0.5, beta=tt.functional.halflife_to_decay(halflife)),
        snn.Readout(12, beta=0.9, beta_rank=0),
    )


def gradients() -> dict[str, Tensor]:
    fall = torch.logspace(-6, 0, STEPS)[:, None]
    slow = fall.sqrt() * (1 + uniform(STEPS, BATCH))
    slow[:4] = 0
    return {"0.output": fall.expand(-1, BATCH), "2.output": slow}


def measured() -> tt.plot.MeasurementManager:
    manager = tt.plot.MeasurementManager("loss")
    for value in uniform(40).tolist():
        manager.append(value)
    return manager


# every function that draws, as ``draw(ax=None) -> ax``
PLOTS: dict[str, Plot] = {
    "spike_train": lambda **k: tt.plot.spike_train(list(recording()["0.output"][:, 0].T), **k),
    "spike_train ticks": lambda **k: tt.plot.spike_train(
        recording()["2.output"][:, 0].T, use_imshow=False, **k
    ),
    "line_graph": lambda **k: tt.plot.line_graph([3.0, 2.0, 1.5], "training", "loss", **k),
    "distributions": lambda **k: tt.plot.distributions(
        [uniform(90), torch.ones(3)], "weights", **k
    ),
    "render_image grey": lambda **k: tt.plot.render_image(uniform(1, 6, 5), title="grey", **k),
    "render_image colour": lambda **k: tt.plot.render_image(uniform(3, 6, 5), title="colour", **k),
    "measurement_manager": lambda **k: measured().plot(**k),
    "raster": lambda **k: tt.plot.raster(recording()["2.output"], **k),
    "raster bands": lambda **k: tt.plot.raster(outputs(), title="a run", **k),
    "state_trace": lambda **k: tt.plot.state_trace(
        recording()["2.mem"],
        neurons=[0, 2],
        spikes=recording()["2.output"],
        thresholds=(0.6, torch.tensor([-0.7, -0.5, -0.9, -0.8])),
        **k,
    ),
    "rate_histogram": lambda **k: tt.plot.rate_histogram(outputs(), bins=8, **k),
    "rate_map": lambda **k: tt.plot.rate_map(outputs(), window=5, **k),
    "halflives": lambda **k: tt.plot.halflives(model(), model(2.0), bins=20, **k),
    "surrogate_curves": lambda **k: tt.plot.surrogate_curves(**k),
    "gradient_flow": lambda **k: tt.plot.gradient_flow(gradients(), **k),
    "learning_curves": lambda **k: tt.plot.learning_curves(
        {"training": uniform(3, 9), "validation": [0.9, 0.5, 0.6]}, **k
    ),
}

# plots that are compared with a baseline
PICTURES = (
    "raster bands",
    "state_trace",
    "rate_map",
    "halflives",
    "surrogate_curves",
    "gradient_flow",
)


def picture(draw: Plot, path: Path) -> None:
    """Save a small PNG of a plot without text: fonts differ between machines."""
    figure = Figure(figsize=(2.2, 1.3), dpi=60)
    draw(ax=figure.add_axes((0.06, 0.1, 0.9, 0.84)))
    for ax in figure.axes:
        ax.set(title="", xlabel="", ylabel="")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_tick_params(which="both", label1On=False, label2On=False)
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    figure.savefig(path, metadata={"Software": None})


def baseline(name: str) -> Path:
    return BASELINE / f"{name.replace(' ', '_')}.png"


if __name__ == "__main__":  # after an intended change; look at them before committing
    for name in PICTURES:
        picture(PLOTS[name], baseline(name))
