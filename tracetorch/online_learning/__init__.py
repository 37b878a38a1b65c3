"""Learn online: gradients at every step by traces derived from ``step``, and STDP."""

from __future__ import annotations

from tracetorch.online_learning.dropped import DroppedPath
from tracetorch.online_learning.learner import OnlineLearner, online
from tracetorch.online_learning.stdp import STDP
from tracetorch.online_learning.stdp_rules import PairRule, TripletRule

__all__ = ["STDP", "DroppedPath", "OnlineLearner", "PairRule", "TripletRule", "online"]
