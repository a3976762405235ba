#!/usr/bin/env python
"""Find and measure lesions in CT volumes: a DICOM series, a NIfTI file, a folder of slices.

    python tools/predict.py -i CT -o OUTPUT --config-file configs/a3d_7slice.yaml --weights model_best.pth
    python tools/predict.py -i CT --list

Writes lesions.json, lesions.csv, lesions.nii.gz, pictures and viewer.html, see docs/volumes.md. The code is in
a3d_det2/engine/predict.py; an installed package has it as ``a3d-predict``.
"""

from a3d_det2.engine.predict import main

if __name__ == "__main__":
    main()
