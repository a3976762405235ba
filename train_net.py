#!/usr/bin/env python
"""Train and evaluate a lesion detector with Detectron2; an installed package has the same as ``a3d-train``.

    python train_net.py --config-file configs/a3d_7slice.yaml --num-gpus 8
    python train_net.py --config-file configs/a3d_7slice.yaml --eval-only \
        MODEL.WEIGHTS output/a3d_7slice/model_best.pth DATASETS.TEST '("deeplesion_test",)'
    python train_net.py --config-file configs/quick/a3d_7slice.yaml --resume

The trainer is in a3d_det2/engine/trainer.py.
"""

from a3d_det2.engine.launching import main

if __name__ == "__main__":
    main()
