"""The metric needs NumPy alone. The evaluator is imported by the package's own ``__init__``."""

from .froc import FrocCurve, froc_curve, froc_sensitivities
from .matching import MatchRule, match, match_per_image

__all__ = ["FrocCurve", "MatchRule", "froc_curve", "froc_sensitivities", "match", "match_per_image"]
