"""Phantom volumes, or slices of them to learn from, in DeepLesion's layout."""

import csv
import math
import os
from dataclasses import dataclass, replace

import numpy as np

from ...data.dl_info import SPLITS
from ...data.phantom import COLUMNS
from ...data.png import HU_OFFSET
from ...data.png import write_png as write_png_slice
from ...data.recist import recist_box
from ...files import replacing
from .blobs import Blob
from .ground_truth import truth
from .invention import random_volume
from .volume import PhantomVolume, render

SMALLEST = 3.0  # px of the long axis of a lesion on a key slice to learn from
CROWDING = 3.0  # of volumes to train on
ATTEMPTS = 100  # volumes to look for a key slice in


@dataclass(frozen=True)
class VolumeOptions:
    """How to invent volumes; see :func:`random_volume`.

    Attributes:
        intervals: slice intervals to choose from; empty leaves the choice to :func:`random_volume`.
    """

    size: int = 256
    intervals: tuple[float, ...] = ()
    lesion_size: tuple[float, float] = (5.0, 40.0)
    lesion_depth: tuple[float, float] | None = None
    crowding: float = 1.0
    seed: int = 0

    def invent(self, index: int) -> PhantomVolume:
        interval = None
        if self.intervals:
            interval = float(np.random.default_rng([self.seed, index, 0, 1]).choice(self.intervals))
        return random_volume(
            index,
            size=self.size,
            slice_interval=interval,
            lesion_size=self.lesion_size,
            lesion_depth=self.lesion_depth,
            crowding=self.crowding,
            seed=self.seed,
        )


def write_png(folder: str, volume: PhantomVolume) -> None:
    """Write a volume as a DeepLesion of one series: ``Images_png/SERIES/NNN.png``, and ``DL_info.csv`` with a row of
    the test split for each lesion on its central slice.

    Raises:
        ValueError: if its slices are not axial.
    """
    patient = volume.seed[-1] + 1
    found = [(lesion["number"], lesion["central_slice"]) for lesion in truth(volume)["lesions"]]
    rows = [_row(volume, patient, "test", k, 0, volume.depth - 1, number) for number, k in found]
    _write_slices(os.path.join(folder, "Images_png"), volume, patient, 0, volume.depth - 1)
    write_rows(os.path.join(folder, "DL_info.csv"), rows)


def write_rows(csv_path: str, rows: list[dict]) -> None:
    """Write a DL_info.csv, in one step."""
    with replacing(csv_path) as part, open(part, "w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_training_series(
    number: int, split: str, patient: int, image_root: str, context: float, options: VolumeOptions
) -> list[dict]:
    """Write the slices around one lesion of a random volume, to learn from.

    The volume is none of those of :meth:`VolumeOptions.invent` for an index below a million, nor of another number or
    split. In training it is ``CROWDING`` times as crowded, as one slice has to show as many vessels of all kinds as a
    volume does. Every lesion on the key slice is annotated; a key slice with one whose long axis is shorter than
    ``SMALLEST`` there is not taken.

    Args:
        number: from 0, of the series in its split.
        split: "train", "val" or "test".
        patient: number to call it by.
        image_root: folder ``Images_png``.
        context: mm of slices on either side of the key slice.
        options: how to invent the volume.

    Returns:
        its rows of DL_info.csv, one per lesion on the key slice.

    Raises:
        ValueError: if none of ``ATTEMPTS`` volumes has such a key slice.
    """
    if split == "train":
        options = replace(options, crowding=CROWDING * options.crowding)
    for attempt in range(ATTEMPTS):
        index = 1_000_000 * SPLITS[split] + ATTEMPTS * number + attempt
        volume = options.invent(index)
        rng = np.random.default_rng([*volume.seed, 0, 3])
        for lesion in rng.permutation(len(volume.lesions)):
            key = round(volume.lesions[lesion].z / volume.slice_interval)
            there = {n: _recist(volume, one, key) for n, one in enumerate(volume.lesions, start=1)}
            there = {n: recist for n, recist in there.items() if recist is not None}
            if all(np.hypot(*(recist[1] - recist[0])) >= SMALLEST for recist in there.values()):
                beside = math.ceil(context / volume.slice_interval)
                first, last = max(key - beside, 0), min(key + beside, volume.depth - 1)
                _write_slices(image_root, volume, patient, first, last)
                return [_row(volume, patient, split, key, first, last, n) for n in there]
    raise ValueError(
        f"Expected a key slice whose lesions are {SMALLEST:g} px or more, got none in {ATTEMPTS} volumes of "
        f"{options.size} x {options.size} pixels with lesions of {options.lesion_size} mm."
    )


def _series(patient: int) -> str:
    return f"{patient:06d}_01_01"


def _write_slices(image_root: str, volume: PhantomVolume, patient: int, first: int, last: int) -> None:
    """Write slices from first to last; slice k is number k + 1, as all that counts in DeepLesion is from 1."""
    folder = os.path.join(image_root, _series(patient))
    os.makedirs(folder, exist_ok=True)
    for k in range(first, last + 1):
        stored = np.clip(np.rint(render(volume, k)) + HU_OFFSET, 0, 65535).astype(np.uint16)
        write_png_slice(os.path.join(folder, f"{k + 1:03d}.png"), stored)


def _recist(volume: PhantomVolume, lesion: Blob, k: int) -> np.ndarray | None:
    """RECIST points of a lesion on slice k, (4, 2) in 0-based pixels; None if it is not there."""
    if volume.oblique or volume.tilt:
        raise ValueError(
            f"Expected axial slices, which DeepLesion has, got some turned by {volume.oblique + volume.tilt:g} degrees."
        )
    z = k * volume.slice_interval
    if not lesion.first < z < lesion.last:
        return None
    return lesion.recist(z) / volume.pixel + (volume.width - 1) / 2


def _row(volume: PhantomVolume, patient: int, split: str, k: int, first: int, last: int, number: int) -> dict:
    """The row of DL_info.csv for a lesion on slice k of a series that has the slices from first to last."""
    lesion = volume.lesions[number - 1]
    recist = _recist(volume, lesion, k)
    diameters = np.hypot(*(recist[0] - recist[1])), np.hypot(*(recist[2] - recist[3]))
    x, y = recist.mean(axis=0) / volume.width
    values = (
        f"{_series(patient)}_{k + 1:03d}.png",
        patient,
        1,
        1,
        k + 1,
        _join(recist.ravel() + 1),
        _join(recist_box(recist) + 1),
        _join(diameters),
        _join((x, y, lesion.z / volume.body.length)),
        -1 if split == "train" else 7,  # soft tissue
        0,
        f"{first + 1}, {last + 1}",
        _join((volume.pixel, volume.pixel, volume.slice_interval)),
        f"{volume.width}, {volume.width}",
        "-175, 275",
        "",
        "NaN",
        SPLITS[split],
    )
    return dict(zip(COLUMNS, values, strict=True))


def _join(values) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
