"""From the inside out:

    matching           which detections hit which lesions; NumPy alone, as the next two
    froc               curve and sensitivities of the match table
    bootstrap          confidence intervals over patients, and the paired test
    strata             parts of a split
    average_precision, mask_quality    COCO's AP50; Dice and diameters
    detections         reads and checks results
    summary            all of these of one result, and of the difference of two
    results            the files and metrics that a training ends with
    tables, visualization, gallery, report    what people look at

The evaluator of Detectron2 is imported by the package's own ``__init__``.
"""

from .froc import FrocCurve, froc_curve, froc_sensitivities
from .matching import MatchRule, match, match_per_image

__all__ = ["FrocCurve", "MatchRule", "froc_curve", "froc_sensitivities", "match", "match_per_image"]
