#!/usr/bin/env python
"""Find the lesions in all CTs of a manifest; an installed package has the same as ``a3d-archive predict``.

    python tools/scan_archive.py /data/cts --manifest archive.csv
    python tools/predict_archive.py --manifest archive.csv --output results --workers 2 \\
        --config-file configs/a3d_7slice.yaml --weights output/a3d_7slice/model_best.pth
    python tools/merge_archive.py --manifest archive.csv --output results --table lesions.csv

docs/scale.md says how several machines do it, and what may be killed.
"""

import sys

from a3d_det2.engine.archive.commands import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
