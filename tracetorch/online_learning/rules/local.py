"""Learning without traces: every state is a constant, so gradients know of one step alone.

Meng et al., "Towards memory- and time-efficient backpropagation for training spiking neural
networks", ICCV 2023.
"""

from __future__ import annotations

from tracetorch.online_learning.rules.learning_rule import LearningRule

RULE = LearningRule("local", None)
