"""A small network on the 128 px phantom, which trains on a laptop's CPU in minutes."""

from .common.data import dataloader
from .common.model import densenet_fpn, lesion_rcnn
from .common.schedule import lr_multiplier, optimizer, train

trunk = dict(block_config=[3, 4, 4], growth_rate=16, num_init_features=32)
backbone = densenet_fpn("a3d", num_slices=7, out_channels=64, **trunk)
model = lesion_rcnn(backbone, [[16, 24], [32, 48], [64, 96]], fc_dim=256, num_fc=1)
model.proposal_generator.pre_nms_topk = (1000, 1000)
model.proposal_generator.post_nms_topk = (500, 300)

mapper = dataloader.train.mapper
mapper.num_slices, mapper.hu_window = 7, (-200.0, 300.0)
for resize in (mapper.augmentations[0], dataloader.test.mapper.augmentations[0]):
    resize.short_edge_length = resize.max_size = 128
mapper.augmentations[2].fill = mapper.hu_window[0]
dataloader.train.dataset.names, dataloader.test.dataset.names = "phantom_train", "phantom_test"
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = dataloader.test.num_workers = 1

optimizer.lr = 0.01
lr_multiplier.scheduler.milestones = [220, 270, 300]
lr_multiplier.warmup_length = 50 / 300
train.update(device="cpu", max_iter=300, eval_period=300, output_dir="./output/lazy/quick_a3d_7slice")
train.checkpointer.period = 300
