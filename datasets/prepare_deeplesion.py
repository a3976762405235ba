#!/usr/bin/env python
"""Make a downloaded DeepLesion ready for training; an installed package has the same as ``a3d-prepare``.

    python datasets/prepare_deeplesion.py --source ~/Downloads/DeepLesion --output datasets/deeplesion --pack

--help says more; the work is in a3d_det2/data/preparation/.
"""

from a3d_det2.data.preparation.command import main

if __name__ == "__main__":
    main()
