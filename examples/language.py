"""Train a language model of bytes on Python's reference manual, read as a stream.

The text is cut into parallel streams that are read from beginning to end: states continue from
one piece to the next, and only the graph is cut (truncated backpropagation through time). The last
tenth of the text is held out. The score is bits per byte, beside those of models that count
single bytes and pairs of bytes. At the end the model writes a sample of text.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tracetorch as tt
from examples import common
from examples.common import rate
from tracetorch import snn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 256
STREAMS, STEPS = 32, 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.language --help``."""
    options = common.Options("examples.language", __doc__ or "", epochs=8, lr=5e-3)
    options.add_argument(
        "--layer", choices=("LIF", "SLIF", "RLIF", "BLIF"), default="BLIF", help="hidden neurons"
    )
    options.add_argument(
        "--temperature", type=rate, default=0.7, metavar="X", help="of the sample of text"
    )
    parsed = options.parse(arguments)
    return common.run("language", parsed.layer, parsed, load, learn, draw)


class Model(snn.TTModule):
    """Model of the next byte: an embedding, two layers of neurons and a linear layer.

    Shape:
        Input ``[B]``, one step of bytes; output ``[B, 256]``.
    """

    def __init__(self, layer: str) -> None:
        super().__init__()
        neurons = getattr(snn, layer)
        # half-lives from one byte to 64
        beta = tt.functional.halflife_to_decay(torch.logspace(0, 6, WIDTH, base=2))
        self.embed = nn.Embedding(256, WIDTH)
        self.first = neurons(WIDTH, beta=beta)
        self.between = nn.Linear(WIDTH, WIDTH)
        self.second = neurons(WIDTH, beta=beta.flip(0))
        self.out = nn.Linear(2 * WIDTH, 256)

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        first = self.first(self.embed(x))
        second = self.second(self.between(first))
        y: Tensor = self.out(torch.cat([first, second], -1))
        return y


def learn(
    options: argparse.Namespace, data: tuple[Tensor, Tensor], seed: int
) -> tuple[Model, common.Scores]:
    """Train a model; return it with its scores."""
    from tqdm import tqdm

    train, held_out = data
    pieces = list(streams(train, STREAMS, STEPS))
    model = Model(options.layer)
    # param_groups exempts the parameters of neurons from weight decay
    optimizer = torch.optim.AdamW(tt.param_groups(model, 1e-2, decay_biases=True), options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.epochs * len(pieces)
    )
    for number in range(options.epochs):
        model.zero_states()  # the streams start from their beginning
        for x, y in tqdm(pieces, f"seed {seed}, pass {number + 1}", leave=False, disable=None):
            logits = tt.unroll(model, x.long())
            loss = cross_entropy(logits.flatten(0, 1), y.long().flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            model.detach_states()  # keep the states, cut their graph
    print(f"--- seed {seed} writes ---\n{write(model, options.temperature, seed)}\n---")
    return model, {"bits per byte": bits(model, held_out), **counted(train, held_out)}


def manual() -> Tensor:
    """Return the bytes of the Python reference manual, which is inside Python."""
    from pydoc_data.topics import topics

    content = "\n\n\n".join(topics[name] for name in sorted(topics)).encode()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def streams(
    text: Tensor, number: int, steps: int, *, keep_rest: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pieces ``[steps, number]`` of parallel streams: bytes, and those that follow them.

    Each piece continues the one before it; a last one that is shorter is left out by default.
    """
    length = (len(text) - 1) // number
    x, y = (text[k : k + number * length].reshape(number, length).T for k in (0, 1))
    for start in range(0, length if keep_rest else length - length % steps, steps):
        yield x[start : start + steps], y[start : start + steps]


def load(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Split the text into a training part and the held-out last tenth."""
    text = manual()
    if options.quick:
        text = text[: 4 * STREAMS * STEPS]
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


@torch.no_grad()
def bits(model: Model, text: Tensor) -> float:
    """Measure bits per byte, reading the text once as a single stream."""
    model.eval()
    model.zero_states()
    total = 0.0
    for x, y in streams(text, 1, 1000, keep_rest=True):
        logits = tt.unroll(model, x.long())
        total += cross_entropy(logits.flatten(0, 1), y.long().flatten(), reduction="sum").item()
    model.zero_states()
    return total / math.log(2) / (len(text) - 1)


def counted(train: Tensor, text: Tensor) -> dict[str, float]:
    """Measure bits per byte of models that count single bytes, and pairs, in the training text."""
    ones = torch.bincount(train.long(), minlength=256).double() + 1
    codes = train[:-1].long() * 256 + train[1:].long()
    twos = torch.bincount(codes, minlength=256 * 256).reshape(256, 256).double()
    unigram = ones / ones.sum()
    # a pair that was never seen counts as its second byte does
    bigram = (twos + unigram) / (twos.sum(1, keepdim=True) + 1)
    first, second = text[:-1].long(), text[1:].long()
    return {
        "counting bytes": float(-unigram[second].log2().mean()),
        "counting pairs": float(-bigram[first, second].log2().mean()),
    }


@torch.no_grad()
def write(model: Model, temperature: float, seed: int, length: int = 400) -> str:
    """Sample text after a heading, one byte at a time."""
    model.eval()
    model.zero_states()
    generator = torch.Generator().manual_seed(seed)
    written = list(b"The class statement\n")
    # the heading sets the states, from which sampling continues
    logits = tt.unroll(model, torch.tensor(written).unsqueeze(1))[-1]
    for _ in range(length):
        drawn = torch.multinomial((logits[0] / temperature).softmax(0), 1, generator=generator)
        written.append(int(drawn))
        logits = model(drawn)
    model.zero_states()
    return bytes(written).decode(errors="replace")


@torch.no_grad()
def draw(options: argparse.Namespace, data: tuple[Tensor, Tensor], model: Model) -> Figure:
    """Plot a held-out passage: the bits per byte, and the spikes."""
    from matplotlib.figure import Figure

    passage = data[1][:120]
    model.zero_states()
    logits, seen = tt.unroll(model, passage[:-1].long().unsqueeze(1), record=["second.output"])
    model.zero_states()
    cost = cross_entropy(logits[:, 0], passage[1:].long(), reduction="none") / math.log(2)
    # not pyplot's figure, which would open a window
    figure = Figure(figsize=(14, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.bar(range(len(cost)), cost.numpy())
    letters = [chr(byte) if 32 < byte < 127 else " " for byte in passage[1:].tolist()]
    top.set(ylabel="bits", title="bits per byte of a held-out passage")
    top.set_xticks(range(len(cost)), letters, fontsize=7)
    bottom.imshow(seen["second.output"][:, 0, :64].T.numpy(), aspect="auto", cmap="PuOr")
    bottom.set(ylabel="64 neurons of the second layer")
    return figure


if __name__ == "__main__":
    sys.exit(main())
