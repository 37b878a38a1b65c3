"""Real-time recurrent learning, in blocks: the derivatives of ``step`` as they are.

Williams and Zipser, "A learning algorithm for continually running fully recurrent neural networks",
Neural Computation 1 (1989); the states of one lane are a block.
"""

from __future__ import annotations

from tracetorch.online_learning.lanes import StepCall
from tracetorch.online_learning.rules.learning_rule import Derivatives, LearningRule


def _derivatives(call: StepCall) -> Derivatives:
    return Derivatives(call.derivatives())


RULE = LearningRule("exact", _derivatives, lossless=True)
