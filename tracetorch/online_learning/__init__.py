"""Learn online: gradients at every step by traces derived from ``step``, and STDP.

A step is a pass, a node in whose graph a state is a function of what its layer learns: the
derivative is the trace, so an ordinary ``backward()`` gives a rule's gradient. What no trace
follows is found in the graph of a layer's input; ``"exact"`` refuses it, others list it as dropped.
"""

from __future__ import annotations

from tracetorch.online_learning.learner import OnlineLearner, online
from tracetorch.online_learning.stdp import STDP, PairRule, TripletRule
from tracetorch.online_learning.step import DroppedPath

__all__ = ["STDP", "DroppedPath", "OnlineLearner", "PairRule", "TripletRule", "online"]
