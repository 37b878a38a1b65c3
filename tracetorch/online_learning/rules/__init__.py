"""The rules of online learning: a file each, and an entry here.

``tt.online`` describes them. They are in order from the most to the least exact.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from tracetorch.online_learning.rules import eprop, exact, local, ottt
from tracetorch.online_learning.rules.learning_rule import LearningRule

Rule: TypeAlias = Literal["exact", "eprop", "ottt", "local"]
RULES: dict[Rule, LearningRule] = {
    "exact": exact.RULE,
    "eprop": eprop.RULE,
    "ottt": ottt.RULE,
    "local": local.RULE,
}
