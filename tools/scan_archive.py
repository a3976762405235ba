#!/usr/bin/env python
"""List the CTs under a folder in a manifest for tools/predict_archive.py; the same as ``a3d-archive scan``."""

import sys

from a3d_det2.engine.archive.commands import main

if __name__ == "__main__":
    main(["scan", *sys.argv[1:]])
