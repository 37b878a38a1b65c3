"""Why a network does not learn: what was found, with its figure, its meaning, and what to try."""

from tracetorch.diagnosis.diagnose import diagnose
from tracetorch.diagnosis.finding import Finding
from tracetorch.diagnosis.report import Diagnosis, LayerFigures

__all__ = ["Diagnosis", "Finding", "LayerFigures", "diagnose"]
