"""Learn online: gradients at every step by traces derived from ``step``, and STDP.

Learning online is a node in the graph of one step. ``step`` is pointwise, so the derivative of a
lane's next states by its states is a small block, had by autograd
(``tracetorch/online_learning/lanes.py``); it carries the derivatives of the states by what a layer
learns. A state enters the next step as a function of those parameters whose derivative is the trace
(``tracetorch/online_learning/traces.py``): an ordinary ``backward()`` then gives the rule's
gradient, and all without memory needs no rule. What no trace follows is found in the graph of a
layer's input, by the parameters reached there; ``"exact"`` refuses it, the others list it as
dropped.

A step is a pass (``tracetorch/online_learning/step.py``), so that a layer which runs asks it, and
its traces advance there. What tells the rules apart is a value, an entry in their list
(``tracetorch/online_learning/rules``). E-prop's block has two sources: ``step`` with its spikes
constant for the rows of states that are reset, ``step`` as it is for the others; a next state that
was computed from another one goes on through that one's row. Traces have names, so they are states
for ``get_states``, ``set_states`` and files (``ExtraStates``).
"""

from __future__ import annotations

from tracetorch.online_learning.dropped import DroppedPath
from tracetorch.online_learning.learner import OnlineLearner, online
from tracetorch.online_learning.stdp import STDP
from tracetorch.online_learning.stdp_rules import PairRule, TripletRule

__all__ = ["STDP", "DroppedPath", "OnlineLearner", "PairRule", "TripletRule", "online"]
