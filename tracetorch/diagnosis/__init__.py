"""Diagnose a network that does not learn: findings with a figure, its meaning and advice."""

from tracetorch.diagnosis.diagnose import diagnose
from tracetorch.diagnosis.finding import Finding
from tracetorch.diagnosis.report import Diagnosis, LayerFigures

__all__ = ["Diagnosis", "Finding", "LayerFigures", "diagnose"]
