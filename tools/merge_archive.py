#!/usr/bin/env python
"""Write what tools/predict_archive.py has found as tables; the same as ``a3d-archive merge``."""

import sys

from a3d_det2.engine.archive.commands import main

if __name__ == "__main__":
    main(["merge", *sys.argv[1:]])
