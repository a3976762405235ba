#!/usr/bin/env python
"""Train and evaluate a lesion detector with torchvision: the configs of train_net.py, the same files in OUTPUT_DIR.

python tools/train_torchvision.py --config-file configs/quick/a3d_7slice.yaml [--resume | --eval-only] KEY VALUE ...
torchrun --nproc-per-node 8 tools/train_torchvision.py --config-file configs/a3d_7slice.yaml

The loop is in a3d_det2/engine/torchvision_loop.py; an installed package has it as ``a3d-train --engine torchvision``.
"""

from a3d_det2.engine.torchvision_loop import main

if __name__ == "__main__":
    main()
