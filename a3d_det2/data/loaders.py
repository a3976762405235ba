"""Detectron2's data loaders, with samples of slices."""

from detectron2.data import build_detection_test_loader, build_detection_train_loader

from ..config import loader_timeout
from .dataset_mapper import DeepLesionMapper


def build_lesion_train_loader(cfg):
    """Build Detectron2's training loader of a config, with :class:`.DeepLesionMapper` and DATALOADER.TIMEOUT."""
    return build_detection_train_loader(cfg, mapper=DeepLesionMapper(cfg, is_train=True), timeout=loader_timeout(cfg))


def build_lesion_test_loader(cfg, dataset_name: str):
    """Build Detectron2's test loader of a dataset, with :class:`.DeepLesionMapper` and DATALOADER.TIMEOUT."""
    loader = build_detection_test_loader(cfg, dataset_name, mapper=DeepLesionMapper(cfg, is_train=False))
    loader.timeout = loader_timeout(cfg)  # the function has no argument for it
    return loader
