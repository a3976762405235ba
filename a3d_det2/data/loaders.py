"""Detectron2's data loaders, with samples of slices."""

from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader

from ..config import loader_timeout
from .dataset_mapper import DeepLesionMapper


def build_lesion_train_loader(cfg):
    """Build Detectron2's training loader of a config, with :class:`.DeepLesionMapper` and DATALOADER.TIMEOUT.

    Raises:
        ValueError: if a dataset has more classes than an R-CNN or RetinaNet of the config.
    """
    timeout = loader_timeout(cfg)
    loader = build_detection_train_loader(cfg, mapper=DeepLesionMapper(cfg, is_train=True), timeout=timeout)
    _check_classes(cfg)  # which some datasets tell when they are read
    return loader


def _check_classes(cfg) -> None:
    for kind, head in (("RCNN", "ROI_HEADS"), ("RetinaNet", "RETINANET")):
        count = cfg.MODEL[head].NUM_CLASSES
        for name in cfg.DATASETS.TRAIN if cfg.MODEL.META_ARCHITECTURE.endswith(kind) else ():
            classes = MetadataCatalog.get(name).get("thing_classes", [])
            if len(classes) > count:
                raise ValueError(
                    f"MODEL.{head}.NUM_CLASSES: expected {len(classes)}, for the classes {', '.join(classes)} of "
                    f"{name}, got {count}."
                )


def build_lesion_test_loader(cfg, dataset_name: str):
    """Build Detectron2's test loader of a dataset, with :class:`.DeepLesionMapper` and DATALOADER.TIMEOUT."""
    loader = build_detection_test_loader(cfg, dataset_name, mapper=DeepLesionMapper(cfg, is_train=False))
    loader.timeout = loader_timeout(cfg)  # the function has no argument for it
    return loader
