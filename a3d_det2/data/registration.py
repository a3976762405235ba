"""Registers datasets in Detectron2's catalogs; a file is read when its dataset is used."""

import inspect
import pickle
from collections.abc import Callable
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog

from .ct_coco import load_ct_coco
from .deeplesion import datasets_root, load_named, load_with_masks, named_splits
from .dl_info import LESION_TYPES

EVALUATOR_TYPE = "coco"  # what Detectron2's own scripts choose their evaluator by; Trainer has DeepLesionEvaluator


def register_deeplesion(name: str, csv_path: str, image_root: str, split: str, *, drop_noisy: bool = True) -> None:
    """Register a split in Detectron2's catalogs; :func:`load_with_masks` reads the file when the dataset is used.

    Args:
        name: what DATASETS.TRAIN and DATASETS.TEST call it.
        csv_path, image_root, split, drop_noisy: see :func:`load_deeplesion`.

    Raises:
        AssertionError: if there is a dataset of this name.
    """
    _register(name, partial(load_with_masks, csv_path, image_root, split, drop_noisy), csv_path, image_root)


def register_ct_coco(name: str, json_file: str, image_root: str, metadata: dict | None = None, **options) -> None:
    """Register key slices of any CT dataset, in COCO's annotation format, in Detectron2's catalogs; as Detectron2's
    ``register_coco_instances``, and the file is read when the dataset is used.

    Args:
        name: what DATASETS.TRAIN and DATASETS.TEST call it.
        json_file, image_root, options: see :func:`.load_ct_coco`.
        metadata: further metadata of the dataset.

    Raises:
        AssertionError: if there is a dataset of this name.
        TypeError: on an unknown option, or a ``read_stack`` that cannot be pickled, such as a lambda.
    """
    inspect.signature(load_ct_coco).bind(json_file, image_root, **options)
    try:
        pickle.dumps(options.get("read_stack"))
    except (AttributeError, pickle.PicklingError, TypeError) as error:
        raise TypeError(
            f"Expected a read_stack that data loaders can pickle, a function of a module: {error}"
        ) from error

    def load() -> list[dict]:
        records, categories = load_ct_coco(json_file, image_root, **options)
        MetadataCatalog.get(name).set(
            thing_classes=list(categories.values()),
            thing_dataset_id_to_contiguous_id={number: i for i, number in enumerate(categories)},
        )
        return records

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type=EVALUATOR_TYPE, **(metadata or {})
    )


def _register(name: str, load: Callable[[], list[dict]], csv_path: str, image_root: str) -> None:
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=["lesion"],
        evaluator_type=EVALUATOR_TYPE,
        csv_file=csv_path,
        image_root=image_root,
        lesion_types=LESION_TYPES,
    )


def register_all_deeplesion(root: str | None = None) -> None:
    """Register all :func:`named_splits`, but for those that are registered already.

    Args:
        root: folder of the datasets. None is :func:`datasets_root`, looked up again whenever a dataset is read; where
            it has changed since the last call, the splits of the new folder take the places of those of the old.

    Raises:
        AssertionError: if there is a dataset of one of the names, of another file.
    """
    for name, (csv_path, image_root, split) in named_splits(root or datasets_root()).items():
        if name in DatasetCatalog:
            if MetadataCatalog.get(name).get("csv_file") == csv_path:
                continue
            if getattr(DatasetCatalog[name], "func", None) is load_named:  # registered here, for another folder
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)
        load = partial(load_named, name) if root is None else partial(load_with_masks, csv_path, image_root, split)
        _register(name, load, csv_path, image_root)
