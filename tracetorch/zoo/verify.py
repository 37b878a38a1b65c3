"""``verify``: measure the networks of the zoo again, and compare with their cards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from tracetorch.core.version import __version__
from tracetorch.zoo import files
from tracetorch.zoo.card import Card, card
from tracetorch.zoo.measure import Numbers, measure
from tracetorch.zoo.networks import NETWORKS, network, usual_defaults
from tracetorch.zoo.tasks import Data, data_hash

Status = Literal["verified", "file", "code", "data", "numbers", "no data"]
_Loaded = dict[Callable[[], Data], Data]
_CLOSE = 1e-6  # relative, of the output, which is a sum


@dataclass(frozen=True)
class Verdict:
    """Result of :func:`verify` for one network.

    Args:
        name: of the network.
        status: ``"verified"``; or why not: the ``"file"`` is damaged or missing, the ``"code"``
            builds a network that does not fit it any more, the ``"data"`` are others, the
            ``"numbers"`` differ although nothing else does, there are ``"no data"`` here.
        reason: in words.
        seconds: that it took.

    Example:
        >>> Verdict("rows-lif", "verified", "", 1.2).ok
        True
    """

    name: str
    status: Status
    reason: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the network computes what its card says."""
        return self.status == "verified"


@dataclass(frozen=True)
class Report:
    """Verdicts of :func:`verify`; it prints as a table.

    Args:
        verdicts: one for each network.

    Example:
        >>> Report((Verdict("rows-lif", "file", "it is damaged", 0.1),)).ok
        False
    """

    verdicts: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """Whether all networks compute what their cards say."""
        return all(each.ok for each in self.verdicts)

    def __str__(self) -> str:
        """Return a line for each network: its status, the seconds, and the reason."""
        width = max((len(each.name) for each in self.verdicts), default=0)
        return "\n".join(
            f"{each.name:{width}}  {each.status:8}  {each.seconds:5.1f} s  {each.reason}".rstrip()
            for each in self.verdicts
        )


def verify(names: Sequence[str] | None = None, *, strict: bool = False) -> Report:
    """Measure networks of the zoo again, and compare with their cards; nothing is downloaded.

    Of each network: the file has its hash; it loads into what its builder builds; the data have
    their hash; and in float64 the number of correct test samples and the spikes of every layer on
    the test batch are equal to those of the card, the output to six digits.

    Args:
        names: which; all if left out.
        strict: whether to raise where a network is not verified.

    Raises:
        ValueError: there is no such network.
        RuntimeError: ``strict``, and a network is not verified; the message says which and why.

    Example:
        >>> report = verify(["words-adlif"])
        >>> [(each.name, each.status) for each in report.verdicts]
        [('words-adlif', 'verified')]
    """
    wanted = tuple(NETWORKS) if names is None else tuple(names)
    for name in wanted:
        network(name)
    loaded: _Loaded = {}  # several networks have the same data
    verdicts = []
    for name in wanted:
        start = time.perf_counter()
        status, reason = _compare(name, loaded)
        verdicts.append(Verdict(name, status, reason, time.perf_counter() - start))
    report = Report(tuple(verdicts))
    if strict and not report.ok:
        failed = "; ".join(f"{v.name}: {v.reason}" for v in report.verdicts if not v.ok)
        raise RuntimeError(f"the zoo is not what its cards say. {failed}")
    return report


@usual_defaults()
def _compare(name: str, loaded: _Loaded) -> tuple[Status, str]:
    """Return status and reason of a network."""
    path, found = files.file_of(name), network(name)
    for each in (path, path.with_suffix(".json")):
        if not each.is_file():
            return "file", f"there is no file {each}"
    try:
        recorded = card(name)
    except ValueError as error:
        return "file", str(error)
    if files.file_hash(path) != recorded.file_hash:
        return "file", f"{path} is damaged: its hash is not that of the card"
    try:
        model = files.loaded(found, path)
    except ValueError as error:
        return "code", f"the network has changed, its file does not fit it any more: {error}"
    try:
        if found.task.load not in loaded:
            loaded[found.task.load] = found.task.load()
    except ModuleNotFoundError as error:
        return "no data", str(error)
    data = loaded[found.task.load]
    if data_hash(data) != recorded.data_hash:
        return "data", "training or test data are not those of the card: their hash differs"
    differ = "; ".join(_differences(recorded, measure(model, found.task, data[1])))
    if differ:
        return "numbers", (
            f"{differ}; file and data are those of the card, so traceTorch or PyTorch "
            f"computes something else: recorded with tracetorch {recorded.tracetorch} and torch "
            f"{recorded.torch}, this is tracetorch {__version__} and torch {torch.__version__}"
        )
    return "verified", ""


def _differences(recorded: Card, found: Numbers) -> Iterator[str]:
    """Yield the numbers that differ from those of the card, in words."""
    if (found.correct, found.samples) != (recorded.correct, recorded.samples):
        yield (
            f"{found.correct} of {found.samples} samples are correct, on the card "
            f"{recorded.correct} of {recorded.samples}"
        )
    for path in {**recorded.spikes, **found.spikes}:
        here, there = found.spikes.get(path), recorded.spikes.get(path)
        if here != there:
            yield f"layer {path!r} has {here} spikes, on the card {there}"
    if abs(found.output - recorded.output) > _CLOSE * abs(recorded.output):
        yield f"the mean output is {found.output:.9g}, on the card {recorded.output:.9g}"
