#!/usr/bin/env python
"""Score detections against a ground truth: FROC by stratum with confidence intervals, AP50, masks, and a report.

    python tools/evaluate.py --ground-truth datasets/deeplesion/DL_info.csv --split test \
        --results output/a3d_7slice/inference/coco_instances_results.json --output evaluation
    python tools/evaluate.py --ground-truth datasets/deeplesion/DL_info.csv \
        --compare a3d=output/a3d_7slice/inference/coco_instances_results.json none=other.csv

Needs no model and no Detectron2. --output gets evaluation.json, scores.csv, report.html and pictures/. The code is in
a3d_det2/engine/evaluate.py; an installed package has it as ``a3d-evaluate``.
"""

from a3d_det2.engine.evaluate import main

if __name__ == "__main__":
    main()
