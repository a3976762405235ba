#!/usr/bin/env python
"""Find lesions of a training set that nobody has annotated, for DATASETS.MINED.

    python tools/mine_lesions.py --datasets phantom_train --output mined.json \\
        --config-file configs/quick/a3d_7slice.yaml --weights output/quick/a3d_7slice/model_final.pth

docs/beyond.md has the rest. The code is in a3d_det2/engine/mine.py; an installed package has it as ``a3d-mine``.
"""

from a3d_det2.engine.mine import main

if __name__ == "__main__":
    main()
