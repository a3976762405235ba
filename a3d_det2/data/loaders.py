"""Detectron2's data loaders, with samples of slices."""

from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader, build_detection_train_loader

from ..config import ignored_problem, loader_timeout
from .dataset_mapper import DeepLesionMapper
from .mined import check_mined


def build_lesion_train_loader(cfg):
    """Build Detectron2's training loader of a config, with :class:`.DeepLesionMapper` and DATALOADER.TIMEOUT.

    Raises:
        ValueError: if a dataset has another number of classes than an R-CNN or RetinaNet of the config, or
            DATASETS.MINED is of another dataset, or the detector of the config does not know ignored lesions.
    """
    if cfg.DATASETS.MINED and (problem := ignored_problem(cfg)):
        raise ValueError(problem)
    mapper = DeepLesionMapper(cfg, is_train=True)
    if cfg.DATASETS.MINED:
        records = (record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name))
        check_mined(mapper.load.mined, (record["image_id"] for record in records), _classes(cfg))
    loader = build_detection_train_loader(cfg, mapper=mapper, timeout=loader_timeout(cfg))
    for name in cfg.DATASETS.TRAIN:  # which some tell when they are read
        _check_classes(cfg, name)
    return loader


def build_lesion_test_loader(cfg, dataset_name: str):
    """Build Detectron2's test loader of a dataset, with :class:`.DeepLesionMapper` and DATALOADER.TIMEOUT.

    Raises:
        ValueError: if the dataset has another number of classes than an R-CNN or RetinaNet of the config, or other ones
            than that of a training in this process.
    """
    loader = build_detection_test_loader(cfg, dataset_name, mapper=DeepLesionMapper(cfg, is_train=False))
    loader.timeout = loader_timeout(cfg)  # the function has no argument for it
    classes = _check_classes(cfg, dataset_name)
    for name in cfg.DATASETS.TRAIN:
        others = MetadataCatalog.get(name).get("thing_classes", classes) if name in MetadataCatalog else classes
        if len(classes) > 1 and list(others) != list(classes):
            raise ValueError(
                f"Expected the classes of {name}, {', '.join(others)}, in {dataset_name}, got {', '.join(classes)}."
            )
    return loader


def _classes(cfg) -> int:
    return cfg.MODEL["RETINANET" if cfg.MODEL.META_ARCHITECTURE.endswith("RetinaNet") else "ROI_HEADS"].NUM_CLASSES


def _check_classes(cfg, dataset_name: str) -> list[str]:
    classes = MetadataCatalog.get(dataset_name).get("thing_classes", [])
    for kind, head in (("RCNN", "ROI_HEADS"), ("RetinaNet", "RETINANET")):
        count = cfg.MODEL[head].NUM_CLASSES
        if cfg.MODEL.META_ARCHITECTURE.endswith(kind) and classes and len(classes) != count:
            raise ValueError(
                f"MODEL.{head}.NUM_CLASSES: expected {len(classes)}, for the classes {', '.join(classes)} of "
                f"{dataset_name}, got {count}."
            )
    return classes
