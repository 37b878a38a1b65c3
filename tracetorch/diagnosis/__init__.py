"""Diagnose a network that does not learn: findings with a figure, its meaning and advice.

A diagnosis names a figure, a meaning and a way out, and is held to both sides: each finding has a
network broken on purpose, and networks that learn raise no alarm. How near membranes came to their
thresholds is measured by running ``step`` once more, on all time steps at once, with recording
functions in place of its spike functions; so any neuron and any surrogate will do.
"""

from tracetorch.diagnosis.diagnose import diagnose
from tracetorch.diagnosis.finding import Finding
from tracetorch.diagnosis.report import Diagnosis, LayerFigures

__all__ = ["Diagnosis", "Finding", "LayerFigures", "diagnose"]
