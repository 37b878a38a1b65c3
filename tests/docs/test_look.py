"""Pictures of pages are looked at: legends that cover lines, halves of what is counted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.docs.pages import DOCS
from tests.plot.cases import PLOTS


@pytest.fixture(scope="module")
def faults() -> Any:
    sys.path.insert(0, str(DOCS / "_extensions/kernel"))
    try:
        return import_module("look").faults
    finally:
        sys.path.pop(0)


def covering(ax: Axes) -> None:
    ax.plot([0, 1], [0, 1], label="rises")
    ax.legend(loc="lower left")


def crossing(ax: Axes) -> None:
    ax.plot([0, 0.1, 0.11, 1], [0, 0, 1, 1], label="rises")  # no point of it is in the legend
    ax.legend(loc="center left", bbox_to_anchor=(0, 0.5))


def points(ax: Axes) -> None:
    ax.plot([0, 1], [0, 1], "o", label="two")
    ax.legend(loc="upper left")


def outside(ax: Axes) -> None:
    ax.plot([0, 1], [0, 1], label="rises")
    assert isinstance(ax.figure, Figure)
    ax.figure.legend(loc="outside right center")


def counted(
    label: str, whole: bool = False, axis: Literal["x", "y"] = "x"
) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ax.plot([0, 12] if axis == "x" else [0, 0], [0, 0] if axis == "x" else [0, 12])
        ax.set(**{f"{axis}label": label})
        ax.locator_params(axis, nbins=6, integer=whole, steps=[2.5, 10] if not whole else None)

    return draw


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (covering, "a legend covers the line 'rises'"),
        (crossing, "a legend covers the line 'rises'"),
        (points, None),
        (outside, None),
        (counted("optimizer step"), "the axis of 'optimizer step' has ticks at"),
        (counted("neuron", axis="y"), "the axis of 'neuron' has ticks at"),
        (counted("optimizer step", whole=True), None),
        (counted("neuron", whole=True, axis="y"), None),
        (counted("spikes per step"), None),
        (counted("input"), None),
    ],
)
def test_pictures_are_looked_at(
    draw: Callable[[Axes], None], expected: str | None, faults: Any
) -> None:
    figure = Figure(figsize=(5, 2.5), layout="constrained")
    draw(figure.subplots())
    found = list(faults(figure))
    assert len(found) == (expected is not None)
    assert expected is None or found[0].startswith(expected)


@pytest.mark.parametrize("name", PLOTS)
def test_plots_of_the_package_pass(name: str, faults: Any) -> None:
    figure = PLOTS[name]().figure
    assert list(faults(figure)) == []
