"""Samples as torchvision's detectors take them."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from fvcore.transforms.transform import HFlipTransform, ScaleTransform, Transform, TransformList, VFlipTransform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import loader_timeout
from .mined import IGNORED, check_mined
from .png import UnreadableSlice
from .sample import SampleLoader, affine_fill, sample_options
from .transforms import draw_affine, draw_hu_jitter
from .workers import turn_off_opencv_threads


class LesionDataset(Dataset):
    """Samples by number, for a test or for a training without end.

    In a test item i is made of record i. In training the records are shuffled again and again, and item i, for any i,
    is made of the i-th record in this sequence; its augmentation depends on ``seed`` and i alone, whichever process
    makes it, and when.

    Args:
        records: as :func:`load_deeplesion` makes them, not empty.
        load: makes samples of records.
        augment: takes an image (H, W, D) in HU, and ``rng`` to draw random numbers from; see :class:`.SampleLoader`.
        seed: not negative.

    Raises:
        ValueError: if there are no records.
    """

    def __init__(self, records: list[dict], load: SampleLoader, augment: Callable, seed: int = 0):
        if not records:
            raise ValueError("Expected at least one key slice in the dataset. Got none!")
        self.records, self.load, self.augment, self.seed = records, load, augment, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor], float, tuple[int, int], str]:
        """Make an item.

        Returns:
            image: (D, H, W) float32.
            target: boxes (n, 4) float32; labels (n,) int64, from 1 on as 0 is the background, or ``IGNORED``; masks
                (n, H, W) uint8 where ``load`` makes them.
            thickness: of the slices in mm, see :class:`.Sample`.
            size: (height, width) on disk.
            image_id: of the record.

        Raises:
            FileNotFoundError, UnreadableSlice, ValueError: see :class:`.SampleLoader`. A key slice that it skips is
                replaced by a random one.
        """
        rng, index = np.random.default_rng([self.seed, 1, i]), i
        if self.load.is_train:
            shuffle, place = divmod(i, len(self.records))
            index = _shuffled(len(self.records), self.seed, shuffle)[place]
        for _ in self.records:
            if (sample := self.load(self.records[index], partial(self.augment, rng=rng), rng.random)) is not None:
                break
            index = rng.integers(len(self.records))
        else:
            raise UnreadableSlice(f"No key slice was readable in {len(self.records)} attempts.")
        image, image_id = torch.from_numpy(sample.image), self.records[index]["image_id"]
        labels = np.where(sample.classes == IGNORED, IGNORED, sample.classes + 1)
        target = {"boxes": torch.from_numpy(sample.boxes), "labels": torch.from_numpy(labels)}
        if sample.masks is not None:
            target["masks"] = torch.from_numpy(np.array(sample.masks, np.uint8).reshape(-1, *image.shape[1:]))
        return image, target, sample.thickness, sample.original_size, image_id


@lru_cache(maxsize=2)  # the shuffle that is gone through, and the next one at its end
def _shuffled(size: int, seed: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, number]).permutation(size)


def augment(
    image: np.ndarray,
    rng: np.random.Generator,
    min_sizes: Sequence[int],
    max_size: int,
    flip: str = "none",
    affine: Sequence[float] = (0, 0, 0, 0, 0),
    jitter: Sequence[float] = (0, 0, 0),
    affine_first: bool = False,
    warp: Sequence[str] = (),
) -> tuple[np.ndarray, Transform]:
    """Augment an image as :class:`.DeepLesionMapper` does by default: resize, flip, affine map and HU jitter.

    Args:
        image: (H, W, D) float32, in HU or windowed.
        rng: random numbers are drawn from it.
        min_sizes: lengths of the shorter side in pixels, one of which is drawn; 0 keeps the size.
        max_size: largest length of the longer side in pixels.
        flip: "horizontal", "vertical" or "none"; flips with a probability of 0.5.
        affine: probability, and the shift, scale, rotation and fill of :func:`.draw_affine`.
        jitter: probability, and the offset and gain of :func:`.draw_hu_jitter`.
        affine_first: whether the affine map comes before resizing and flipping.
        warp: interpolation and border of :func:`.draw_affine`.

    Returns:
        the augmented image, (H', W', D), and what was done to it.
    """
    transforms, size = [], image.shape[:2]

    def warp_at_random() -> None:
        if rng.random() < affine[0]:
            transforms.append(draw_affine(size, *affine[1:], rng.uniform, *warp))

    if affine_first:
        warp_at_random()
    if shorter := rng.choice(min_sizes):
        scale = min(shorter / min(size), max_size / max(size))
        old, size = size, (int(size[0] * scale + 0.5), int(size[1] * scale + 0.5))
        transforms += [ScaleTransform(*old, *size, "bilinear")] if size != old else []
    if flip != "none" and rng.random() < 0.5:
        transforms.append({"horizontal": HFlipTransform(size[1]), "vertical": VFlipTransform(size[0])}[flip])
    if not affine_first:
        warp_at_random()
    if rng.random() < jitter[0]:
        transforms.append(draw_hu_jitter(*jitter[1:], rng.uniform))
    transform = TransformList(transforms)
    return transform.apply_image(image), transform


def build_lesion_dataset(cfg, records: list[dict], is_train: bool, seed: int = 0) -> LesionDataset:
    """Build the :class:`LesionDataset` of a config.

    Raises:
        ValueError: if DATASETS.MINED is of another dataset.
    """
    turn_off_opencv_threads()  # whoever gives the dataset to a data loader will fork workers
    how, affine, jitter = cfg.INPUT, cfg.INPUT.AFFINE, cfg.INPUT.HU_JITTER
    change = partial(augment, min_sizes=[how.MIN_SIZE_TEST], max_size=how.MAX_SIZE_TEST)
    if is_train:
        change = partial(augment, min_sizes=how.MIN_SIZE_TRAIN, max_size=how.MAX_SIZE_TRAIN, flip=how.RANDOM_FLIP)
        limits = affine.PROB, affine.SHIFT, affine.SCALE, affine.ROTATION, affine_fill(cfg)
        change = partial(change, affine=limits, jitter=(jitter.PROB, jitter.OFFSET, jitter.GAIN))
        warp = affine.INTERPOLATION, affine.BORDER
        change = partial(change, affine_first=affine.ORDER == "first", warp=warp)
    load = SampleLoader(**(sample_options(cfg, is_train) | {"mask_format": "bitmask"}))  # all that torchvision takes
    if load.mined is not None:
        check_mined(load.mined, (record["image_id"] for record in records), cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    return LesionDataset(records, load, change, seed)


def build_loader(cfg, records: list[dict], items: Sequence[int], batch_size: int, **options) -> DataLoader:
    """Build the data loader of a config, for torchvision's detectors.

    Args:
        records: as :func:`load_deeplesion` makes them.
        items: numbers of the items of the :class:`LesionDataset` to load, in the order of the batches.
        batch_size: items in a batch, which is a list of them.
        options: ``is_train`` and ``seed``, see :func:`build_lesion_dataset`.
    """
    dataset = build_lesion_dataset(cfg, records, **options)
    how = {"num_workers": cfg.DATALOADER.NUM_WORKERS, "timeout": loader_timeout(cfg), "collate_fn": list}
    return DataLoader(dataset, batch_size, sampler=items, **how)
