from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tracetorch as tt
from tests.cases import SURROGATES
from tracetorch.functional import Surrogate


@pytest.mark.parametrize("surrogate", SURROGATES, ids=repr)
def test_curves_are_the_derivatives(surrogate: Surrogate) -> None:
    (line,) = [
        line
        for line in tt.plot.surrogate_curves(surrogate).lines
        if line.get_label() == repr(surrogate)
    ]
    u = torch.as_tensor(np.asarray(line.get_xdata()))
    assert np.allclose(line.get_ydata(), surrogate.derivative(u).expand_as(u))


def test_callables_are_labelled_and_the_default_is_every_surrogate() -> None:
    def soft(u: Tensor) -> Tensor:
        return torch.sigmoid(u)

    ax: Any
    with torch.no_grad():
        ax = tt.plot.surrogate_curves({"mine": soft}, reach=3.0)
        again = tt.plot.surrogate_curves([soft], reach=3.0)
    assert max(np.asarray(ax.lines[0].get_ydata())) == pytest.approx(0.25)
    assert ax.get_xlim() == (-3, 3)
    assert [ax.lines[0].get_label(), again.lines[0].get_label()] == ["mine", "soft"]
    ax = tt.plot.surrogate_curves([lambda u: torch.sigmoid(u), lambda u: torch.sigmoid(2 * u)])
    assert [max(line.get_ydata()) for line in ax.lines[:2]] == pytest.approx([0.25, 0.5])
    labels = [line.get_label() for line in tt.plot.surrogate_curves().lines]
    names = [n for n in tt.functional.__all__ if n.endswith("_surrogate")]
    assert sorted(str(label).partition("(")[0] for label in labels[:-1]) == sorted(names)
