"""Detectron2's data loaders as the trainer builds them: damage, crashes and slow disks."""

import logging
import os
import re
import shutil
import signal
import time

import pytest

pytest.importorskip("detectron2")

import cv2
import numpy as np
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from a3d_det2 import DeepLesionMapper, RandomAffine, add_a3d_config
from a3d_det2.data import loaders, register_deeplesion
from tests.damage import Dataset, make_8_bit, resize, truncate


@pytest.fixture
def dataset(phantom_root, tmp_path):
    """A phantom that is registered as loader_train and loader_test."""
    shutil.copytree(phantom_root / "phantom", tmp_path / "phantom")
    for split in ("train", "test"):
        table, images = str(tmp_path / "phantom" / "DL_info.csv"), str(tmp_path / "phantom" / "Images_png")
        register_deeplesion(f"loader_{split}", table, images, split)
    yield Dataset(tmp_path / "phantom")
    for split in ("train", "test"):
        DatasetCatalog.pop(f"loader_{split}")
        MetadataCatalog.pop(f"loader_{split}")


@pytest.fixture
def cfg(dataset):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.DATASETS.TRAIN = ("loader_train",)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (96,), 96
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.MODEL.A3D.NUM_SLICES, cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7, 1
    return cfg


@pytest.fixture
def log(tmp_path):
    """What this process and the workers log, as it would stand in Detectron2's log.txt; returns a function."""
    handler = logging.FileHandler(tmp_path / "log.txt")
    logging.getLogger("a3d_det2").addHandler(handler)
    yield (tmp_path / "log.txt").read_text
    logging.getLogger("a3d_det2").removeHandler(handler)
    handler.close()


def samples(cfg, count):
    batches = iter(loaders.build_lesion_train_loader(cfg))
    found = []
    while len(found) < count:
        found += next(batches)
    return found


def test_training_goes_on_past_damaged_neighbours_with_one_warning_each(dataset, cfg, log):
    """Over several epochs and two workers."""
    rows = dataset.key_slices(1)
    damaged = [dataset.path(row, 1) for row in rows[:4]]
    for path, damage in zip(damaged, (os.remove, truncate, make_8_bit, resize), strict=True):
        damage(path)
    cfg.INPUT.SLICE_INTERVAL = 0.5  # which visits every neighbour
    samples(cfg, 60)
    for path in damaged:
        assert len(re.findall(f"{path}: .* takes its place", log())) == 1
    assert log().count("\n") == 4


def test_an_unreadable_key_slice_stops_training_and_is_named(dataset, cfg):
    path = dataset.path(dataset.key_slices(1)[0])
    truncate(path)
    with pytest.raises(ValueError, match=f"{path}: expected a complete 16-bit PNG"):
        samples(cfg, 40)


def test_unreadable_key_slices_are_skipped_on_request(dataset, cfg, log):
    paths = [dataset.path(row) for row in dataset.key_slices(1)[:3]]
    for path in paths:
        truncate(path)
    cfg.INPUT.UNREADABLE_KEY_SLICE = "skip"
    names = {sample["file_name"] for sample in samples(cfg, 80)}
    assert len(names) == 9
    assert not names & set(map(str, paths))
    assert "key slice 3 that is unreadable" in log()


class Crashing(DeepLesionMapper):
    def __call__(self, dataset_dict):
        os.kill(os.getpid(), signal.SIGKILL)


class Slow(DeepLesionMapper):
    def __call__(self, dataset_dict):
        time.sleep(2.5)
        return super().__call__(dataset_dict)


def test_a_worker_that_crashes_stops_training(cfg, monkeypatch):
    monkeypatch.setattr(loaders, "DeepLesionMapper", Crashing)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"DataLoader worker .*(killed|exited unexpectedly)"):
        samples(cfg, 1)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("is_train", [True, False])
def test_a_disk_that_does_not_answer_stops_the_loader(cfg, monkeypatch, is_train):
    monkeypatch.setattr(loaders, "DeepLesionMapper", Slow)
    cfg.DATALOADER.TIMEOUT = 1
    if is_train:
        loader = loaders.build_lesion_train_loader(cfg)
    else:
        loader = loaders.build_lesion_test_loader(cfg, "loader_test")
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="DataLoader timed out after 1 seconds"):
        next(iter(loader))
    assert time.monotonic() - start < 20


def test_without_workers_there_is_no_timeout(cfg):
    cfg.DATALOADER.NUM_WORKERS = 0  # with a timeout torch would refuse that
    assert samples(cfg, 2)[0]["image"].shape == (7, 96, 96)
    (sample,) = next(iter(loaders.build_lesion_test_loader(cfg, "loader_test")))
    assert sample["image"].shape[0] == 7


@pytest.mark.parametrize("is_train", [True, False])
def test_opencv_used_before_the_workers_are_forked_does_not_hang_them(cfg, is_train):
    """Its threads do not survive a fork."""
    image = np.zeros((512, 512, 7), dtype=np.float32)
    cfg.DATALOADER.TIMEOUT = 30
    for _ in range(2):
        cv2.setNumThreads(4)
        RandomAffine(prob=1.0).get_transform(image).apply_image(image)
        if is_train:
            samples(cfg, 10)  # a worker that hangs would be an error after 30 s
        else:
            assert len(list(loaders.build_lesion_test_loader(cfg, "loader_test"))) == 6
        assert cv2.getNumThreads() == 1
