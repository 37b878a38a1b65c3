"""Trained networks, small and verified: a file each, with what it must compute.

A network of the zoo is a function that builds it, a task, a recipe and two files: its tensors, as
``tt.save`` writes them, and a card. The card holds what was measured when the file was made: the
accuracy of several seeds with its interval, the test samples that are classified correctly, the
spikes of every layer on a test batch, and hashes of file and data. The files are a part of the
package: nothing is downloaded. A network of integers has a second function, which builds the floats
that are trained first.

``verify`` measures again, in float64. There rounding moves no spike across its threshold, so that
spikes and correct samples are equal on every machine, and one spike more is a change.

``interval`` says where 99 % of new trainings land, on another test set too: the mean over seeds,
plus or minus the root of ``t^2 s^2 (1 + 1 / n) + 2.58^2 2 p (1 - p) / N``. ``t`` is Student's
quantile, since the deviation is of few seeds; both test sets vary, the old and the new one.
"""

from tracetorch.zoo.card import Card, card, names, table
from tracetorch.zoo.files import load
from tracetorch.zoo.measure import sample_batch
from tracetorch.zoo.networks import Recipe
from tracetorch.zoo.training import train
from tracetorch.zoo.verify import Report, Verdict, verify

__all__ = [
    "Card",
    "Recipe",
    "Report",
    "Verdict",
    "card",
    "load",
    "names",
    "sample_batch",
    "table",
    "train",
    "verify",
]
