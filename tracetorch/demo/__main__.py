"""Run the demo from the command line: ``python -m tracetorch.demo --help``."""

from __future__ import annotations

import math
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import tracetorch
from tracetorch.core.optional import require
from tracetorch.data.digits import Digits, load_digits
from tracetorch.demo.figure import draw
from tracetorch.demo.network import ConvSNN, record_spikes
from tracetorch.demo.options import parse
from tracetorch.demo.training import Epoch, Score, Settings, train

FEW = 1000  # digits of which spikes are counted
LARGE_DATASET = 10_000  # training digits; two epochs of at least as many are enough


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0, or 1 for an error, 2 for an invalid argument, 130 for Ctrl-C."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        require("matplotlib", "tqdm", extra="demo", by="The demo")
        options.out.mkdir(parents=True, exist_ok=True)
        digits = load_digits(options.data)
        epochs = options.epochs or (Settings.epochs if len(digits.train) < LARGE_DATASET else 2)
        settings = Settings(epochs, options.batch_size, options.steps, options.lr)
        # everything that the result depends on
        print(
            f"traceTorch {tracetorch.__version__}, PyTorch {torch.__version__}, "
            f"{torch.get_num_threads()} CPU threads\n"
            f"digits    {digits.source}\n"
            f"split     {len(digits.train):,} train, {len(digits.validation):,} validation "
            f"(chooses the epoch), {len(digits.held_out):,} held out; the same for every seed\n"
            f"settings  {epochs} epochs, batches of {settings.batch_size}, T={settings.steps}, "
            f"lr {settings.lr:g}\n"
            f"seeds     {', '.join(map(str, options.seeds))}"
        )
        accuracies = [
            train_seed(digits, settings, seed, options.out, options.page) for seed in options.seeds
        ]
    except KeyboardInterrupt as stop:
        print(f"\nInterrupted. {stop}".rstrip())
        return 130
    # a full disk, a damaged file, a package that is missing
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if len(accuracies) > 1:
        print(
            f"\n{len(accuracies)} seeds: held-out accuracy {statistics.mean(accuracies):.2%} on "
            f"average, standard deviation {statistics.stdev(accuracies):.2%}, "
            f"from {min(accuracies):.2%} to {max(accuracies):.2%}"
        )
    return 0


def train_seed(digits: Digits, settings: Settings, seed: int, out: Path, page: bool) -> float:
    """Train one network, and save the model of its best epoch and a figure of it in ``out``.

    With ``page`` a page to draw on, too. A model that an earlier run left there is kept as
    ``seed<N>.previous.safetensors``. Return the held-out accuracy of the epoch with the lowest
    validation loss. The message of Ctrl-C names the model that is saved.
    """
    path = out / f"seed{seed}.safetensors"
    previous = out / f"seed{seed}.previous.safetensors"
    torch.manual_seed(seed)
    model = ConvSNN()
    best = Epoch(0, 0.0, Score(0.0, math.inf), Score(0.0, math.inf))
    start = time.perf_counter()
    print(f"\nseed {seed}")
    try:
        for epoch in train(model, digits, settings, seed):
            # selected by the loss: the accuracy on a few hundred digits is too coarse
            if epoch.number == 1 or epoch.validation.loss < best.validation.loss:
                if not best.number and path.exists():  # which may be the better one
                    shutil.copyfile(path, previous)
                    print(f"The model of an earlier run is kept in {previous}.")
                tracetorch.save(model, path)
                best = epoch
            if epoch.number == 1:
                print("           train  validation  held out  seconds")
            print(
                f"epoch {epoch.number:<3} {epoch.train_accuracy:6.1%}     "
                f"{epoch.validation.accuracy:7.1%}   {epoch.held_out.accuracy:7.1%}  "
                f"{time.perf_counter() - start:7.0f}",
                flush=True,
            )
        report(best, digits, settings, path, page)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"The best model so far, of epoch {best.number}, is in {path}."
            if best.number
            else "No epoch was finished, so nothing was saved."
        ) from None
    return best.held_out.accuracy


def report(best: Epoch, digits: Digits, settings: Settings, path: Path, page: bool) -> None:
    """Load the saved model, print its accuracy and firing rates, and draw its spikes."""
    # from the file, so that the report describes what was saved
    model = ConvSNN()
    tracetorch.load(path, model)
    images, labels = digits.held_out.tensors
    with torch.no_grad():
        spikes, _ = record_spikes(model.eval(), images[:FEW], settings.steps)
    rates = {name: float(layer_spikes.mean()) for name, layer_spikes in spikes.items()}
    picture = path.with_suffix(".png")
    draw(model, images[0], int(labels[0]), settings.steps, picture)
    print(
        f"held-out accuracy  {best.held_out.accuracy:.1%} (epoch {best.number}, which has the "
        f"lowest validation loss)\n"
        f"firing rate        {', '.join(f'{name} {rate:.3f}' for name, rate in rates.items())} "
        f"spikes per neuron and step\n"
        f"model              {path}\n"
        f"picture            {picture}\n"
        f"to load the model  import tracetorch as tt; from tracetorch.demo.network import ConvSNN; "
        f"tt.load({str(path)!r}, model := ConvSNN())"
    )
    if page:  # to draw on, with a held-out digit of each class
        first = {int(label): i for i, label in reversed(list(enumerate(labels.tolist())))}
        samples = {f"of a {label}": images[i] for label, i in sorted(first.items())}
        place = path.with_suffix(".html")
        # as many steps as the picture has
        tracetorch.export.page(model, place, samples, steps=4 * settings.steps)
        print(f"page               {place}")


if __name__ == "__main__":
    sys.exit(main())
