"""How good lesions are that were found in whole volumes, by the rules that others publish.

    table        CSV files
    truth        the lesions that there are
    results      those that were found, read from lesions.json or CSV
    rules        what a hit is, each rule with its source
    evaluation   FROC per volume by a rule, with intervals, strata and volumes without lesions
    agreement    how well lesions that were found are measured

Curves and the match table are those of key slices: an image there is a volume here. Legend: n lesions that were found
and m that there are in a volume; boxes name their first and last voxels, (x1, y1, z1, x2, y2, z2).
"""

from .evaluation import VolumeEvaluation
from .results import FoundVolume
from .rules import RULES, VolumeRule
from .truth import TrueVolume

__all__ = ["RULES", "FoundVolume", "TrueVolume", "VolumeEvaluation", "VolumeRule"]
