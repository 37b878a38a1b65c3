"""Random networks of integers as circuits, against PyTorch: outputs of every step."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.networks import Net
from tracetorch import chips, integers, snn

CAN_RUN = shutil.which("iverilog") is not None and shutil.which("verilator") is not None


def neuron(draw: random.Random, size: int, dim: int = -1) -> snn.Neuron:
    """Draw an integer neuron."""
    if draw.random() < 0.15 and dim == -1:
        dash: dict[str, Any] = {"dash_mem": draw.randint(1, 5), "dash_syn": draw.randint(1, 5)}
        return chips.xylo.LIF(size, pos_threshold=draw.randint(20, 200), **dash)
    shift = draw.random() < 0.5
    rounding: Any = draw.choice(["floor", "trunc", "nearest"] + ["at_least_one"] * shift)
    bits = draw.randint(2, 8)
    decay = integers.Shift(rounding) if shift else integers.Multiplier(bits, rounding)
    most = 6 if shift else 2**bits

    def some(low: int, high: int) -> Any:
        if draw.random() < 0.6:
            return draw.randint(low, high)
        return torch.tensor([float(draw.randint(low, high)) for _ in range(size)])

    given: dict[str, Any] = {"beta": some(0, most), "state_bits": draw.randint(8, 18)}
    highest = 2 ** (given["state_bits"] - 1) - 1
    if draw.random() < 0.4:
        given["alpha"] = some(0, most)
    if draw.random() < 0.3:
        given |= {"gamma": some(0, most), "rec_weight": some(-9, 9)}
        given["rec_weight_fraction"] = draw.randint(0, 3)
    for sign in ("pos", "neg"):
        if draw.random() < (0.85 if sign == "pos" else 0.3):
            given[f"{sign}_threshold"] = some(1, min(150, highest))
            if draw.random() < 0.3:
                given[f"{sign}_scale"] = some(-3, 3)
    if draw.random() < 0.4:
        given["bias"] = some(-20, 20)
    for name in ("alpha_ema", "beta_ema", "gamma_ema"):
        if draw.random() < 0.2 and name[:-4] in given:
            given[name] = True
    choices = {"overflow": ["saturate", "wrap"], "reset": ["subtract", "zero", "none"]}
    given |= {name: draw.choice(values) for name, values in choices.items()}
    return integers.LeakyIntegrator(size, dim, decay=decay, **given)


def _filled(draw: random.Random, made: Any) -> Any:
    made.weight.copy_(torch.randint(-8, 8, made.weight.shape))
    if made.bias is not None:
        made.bias.copy_(torch.randint(-30, 30, made.bias.shape))
    return made


def linear(draw: random.Random, inputs: int, outputs: int) -> nn.Module:
    """Draw a linear layer of integers, with delays or without."""
    bias, shift = draw.random() < 0.6, draw.choice([0, 0, 2])
    options: dict[str, Any] = {"shift": shift, "weight_bits": draw.choice([4, 8])}
    if draw.random() < 0.2:
        most = draw.randint(1, 4)
        delay = torch.randint(0, most + 1, (outputs, inputs)).float()
        made = integers.DelayedLinear(inputs, outputs, bias, max_delay=most, delay=delay, **options)
        _filled(draw, made.linear)
        return made
    filled: nn.Module = _filled(draw, integers.Linear(inputs, outputs, bias, **options))
    return filled


def convolution(draw: random.Random, x: Tensor, outputs: int) -> nn.Module:
    """Draw a convolution of integers over an image."""
    inputs, least = x.shape[1], min(x.shape[2:])
    groups, padding = draw.choice([1, 1, inputs]), draw.randint(0, 2)
    kernel = (draw.randint(1, 3), draw.randint(1, 3))
    dilation = draw.randint(1, 2)
    if dilation * (max(kernel) - 1) >= least + 2 * padding:
        kernel = (1, 1)
    made = integers.Conv2d(
        inputs,
        outputs * groups,
        kernel,
        stride=draw.randint(1, 2),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw.random() < 0.5,
    )
    filled: nn.Module = _filled(draw, made)
    return filled


def image(draw: random.Random, x: Tensor) -> list[nn.Module]:
    """Draw layers over an image, up to a flat one."""
    layers: list[nn.Module] = []
    for _ in range(draw.randint(1, 2)):
        layers.append(convolution(draw, x, draw.randint(1, 3)))
        x = layers[-1](x)
        layers.append(neuron(draw, x.shape[1], -3))
        if draw.random() < 0.5 and min(x.shape[2:]) >= 2:
            pads = draw.randint(0, 1)
            pools = [nn.MaxPool2d(2, draw.randint(1, 2), padding=pads), integers.SumPool2d(2)]
            layers.append(draw.choice(pools))
            x = layers[-1](x)
    return [*layers, nn.Flatten()]


def drawn(seed: int) -> tuple[nn.Module, Tensor, int]:
    """Draw a network, its input and a number of lanes."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    lanes = draw.choice([1, 1, 2, 4, 8])
    shape: tuple[int, ...] = (draw.randint(1, 2), draw.randint(4, 7), draw.randint(4, 7))
    flat = draw.random() < 0.6
    shape = shape if not flat else (draw.randint(1, 9),)
    low, high = draw.choice([(0, 1), (-1, 1), (0, 3), (-9, 7)])
    x = torch.randint(low, high + 1, (12, 2, *shape)) * (torch.rand(12, 2, *shape) < 0.5)
    x = x.float()
    layers = [] if flat else image(draw, x[0])
    y = nn.Sequential(*layers)(x[0])
    width = y.shape[1]
    for _ in range(draw.randint(1, 3)):
        kind = draw.choice(["plain", "plain", "recurrent", "added", "views"])
        size = draw.randint(1, 7)
        if kind == "plain":
            layers += [linear(draw, width, size), neuron(draw, size)]
            width = size
        elif kind == "recurrent":
            layers.append(snn.Recurrent(neuron(draw, width), linear(draw, width, width)))
        elif kind == "added":
            inner = nn.Sequential(linear(draw, width, width), neuron(draw, width))
            layers.append(Net(lambda net, x: 2 * x - net.inner(x), inner=inner))
        else:
            layers += [nn.Unflatten(1, (1, width)), nn.MaxPool1d(1), nn.Flatten()]
    if draw.random() < 0.5:
        layers.append(linear(draw, width, draw.randint(1, 4)))
    model = nn.Sequential(*layers).double()
    tt.zero_states(model)
    return model, x.double(), lanes


def check(seed: int, folder: Path) -> str | None:
    """Compare a network's circuit with PyTorch; return the reason if it is refused."""
    model, x, lanes = drawn(seed)
    try:
        tt.export.verilog(model, folder, x, lanes=lanes)
    except ValueError as error:
        return str(error)
    for target in ("sim", "lint"):
        done = subprocess.run(["make", target], cwd=folder, capture_output=True, text=True)
        printed = done.stdout + done.stderr
        clean = "equal" in printed if target == "sim" else "%Warning" not in printed
        if done.returncode or not clean or "warning:" in printed:
            raise AssertionError(f"lanes={lanes}, make {target}: {printed[-2000:]}\n{model}")
    return None
