"""A3D with 7 slices on Detectron2's FPN, for Detectron2's own lazyconfig_train_net.py:

    python tools/lazyconfig_train_net.py --config-file /path/to/a3d_det2/configs/lazy/a3d_fpn_7slice.py

It starts from nothing. ``tools/convert_checkpoint.py`` makes a file of ImageNet's weights, or of others, that
train.init_checkpoint takes.
"""

from .common.data import dataloader
from .common.model import densenet_fpn, lesion_rcnn
from .common.schedule import lr_multiplier, optimizer, train

model = lesion_rcnn(densenet_fpn("a3d", num_slices=7), [[16, 24], [32, 48], [96, 192]])
dataloader.train.mapper.num_slices = 7
train.output_dir = "./output/lazy/a3d_fpn_7slice"
