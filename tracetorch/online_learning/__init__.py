"""Learn online: gradients at every step, by eligibility traces derived from ``step``."""

from __future__ import annotations

from tracetorch.online_learning.dropped import DroppedPath
from tracetorch.online_learning.learner import OnlineLearner, online

__all__ = ["DroppedPath", "OnlineLearner", "online"]
