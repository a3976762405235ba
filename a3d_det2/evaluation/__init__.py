"""The metric needs NumPy alone. The evaluator is imported by the package's own ``__init__``."""

from .froc import FrocCurve, froc_curve, froc_sensitivities

__all__ = ["FrocCurve", "froc_curve", "froc_sensitivities"]
