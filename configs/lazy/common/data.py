"""DeepLesion as the YAML configs read it."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from omegaconf import OmegaConf

from a3d_det2 import DeepLesionEvaluator, DeepLesionMapper, RandomAffine

dataloader = OmegaConf.create()
dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="deeplesion_train"),
    mapper=L(DeepLesionMapper)(
        is_train=True,
        num_slices=7,
        slice_interval=2.0,
        hu_window=(-1024.0, 2050.0),
        augmentations=[
            L(T.ResizeShortestEdge)(short_edge_length=512, max_size=512),
            L(T.RandomFlip)(horizontal=True),
            L(RandomAffine)(),
        ],
    ),
    total_batch_size=8,
    num_workers=4,
)
dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="deeplesion_val", filter_empty=False),
    mapper=L(DeepLesionMapper)(
        is_train=False,
        num_slices="${...train.mapper.num_slices}",
        slice_interval="${...train.mapper.slice_interval}",
        hu_window="${...train.mapper.hu_window}",
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=512, max_size=512)],
    ),
    num_workers=4,
)
dataloader.evaluator = L(DeepLesionEvaluator)(dataset_name="${..test.dataset.names}", output_dir=None)
