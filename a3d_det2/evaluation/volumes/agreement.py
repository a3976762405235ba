"""How well lesions are measured: Bland and Altman's limits of agreement (The Lancet 1986)."""

from dataclasses import dataclass

import numpy as np

LIMITS = 1.96  # standard deviations, between which 95 % of normally distributed differences lie


@dataclass(frozen=True, eq=False)
class Agreement:
    """Measurements of the k lesions that were found and whose measure is known.

    Attributes:
        truth, found: (k,) the two measurements.
    """

    truth: np.ndarray
    found: np.ndarray

    @property
    def differences(self) -> np.ndarray:
        """(k,) found minus truth."""
        return self.found - self.truth

    def summary(self) -> dict:
        """num_lesions; bias, the mean difference, and the lower and upper limit of agreement, from two lesions on;
        NaN where there are fewer."""
        count, differences = len(self.truth), self.differences
        bias = float(differences.mean()) if count else np.nan
        spread = LIMITS * float(differences.std(ddof=1)) if count > 1 else np.nan
        return {"num_lesions": count, "bias": bias, "limits": [bias - spread, bias + spread]}
