"""How good detections are.

    matching             which detections hit which lesions; NumPy alone, as the next two
    froc                 curve and sensitivities of the match table
    bootstrap            confidence intervals over patients, and the paired test
    strata               parts of a split
    average_precision    COCO's AP50
    mask_quality         Dice and diameters
    detection_reader     reads and checks results
    froc_evaluation      sensitivities with intervals of one result, and the difference of two
    split_evaluation     all of these for one result on a split
    volumes              and on whole volumes, by the rules that others publish
    report               what people look at: tables, figures, gallery, page
    evaluation_files     the files and metrics that an evaluation of either engine ends with
    deeplesion_evaluation    Detectron2's evaluator, the only one here that imports Detectron2

detections, summary, results, tables and visualization are other names of detection_reader, split_evaluation,
evaluation_files, report.tables and report.figures.
"""

from .froc import FrocCurve, froc_curve, froc_sensitivities
from .matching import MatchRule, match, match_per_image

__all__ = ["FrocCurve", "MatchRule", "froc_curve", "froc_sensitivities", "match", "match_per_image"]
