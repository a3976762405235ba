"""What is wrong with the slices of one series on disk."""

import os
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...files import slice_number
from ..packed import PackedSeries, packed_path
from ..png import NotSixteenBit, UnreadableSlice
from ..series import PngSeries, series_name
from .report import Finding


@dataclass(frozen=True)
class SeriesAnnotations:
    """What the csv says of one series.

    Attributes:
        name: folder under Images_png.
        key_slices: number -> (height, width).
        ranges: first and last number of each Slice_range.
    """

    name: str
    key_slices: dict[int, tuple[int, int]]
    ranges: tuple[tuple[int, int], ...]

    def numbers(self) -> set[int]:
        """Give the numbers of the slices that there should be."""
        return set(self.key_slices).union(*(range(first, last + 1) for first, last in self.ranges))


def records_by_series(records: list[dict]) -> dict[str, list[dict]]:
    """Group the records of :func:`.check_annotations` by the name of their series, and order them by it."""
    groups = defaultdict(list)
    for record in records:
        groups[series_name(record["file_name"])].append(record)
    return dict(sorted(groups.items()))


def annotations_of_series(name: str, records: list[dict]) -> SeriesAnnotations:
    """Gather what the records of one series say of it."""
    sizes = {slice_number(record["file_name"]): (record["height"], record["width"]) for record in records}
    return SeriesAnnotations(name, sizes, tuple(sorted({record["slice_range"] for record in records})))


def group_by_series(records: list[dict]) -> list[SeriesAnnotations]:
    """Gather what the records of :func:`.check_annotations` say of each series, ordered by name."""
    return [annotations_of_series(*group) for group in records_by_series(records).items()]


def inspect_series(
    series: SeriesAnnotations, image_root: str, on_slice: Callable[[int, np.ndarray], None] | None = None
) -> list[Finding]:
    """Decode every slice of a series that is on disk, and look for those that are not.

    Where there is a packed series, its checksums are looked at, and whether it holds what the PNG files do; a slice of
    which there is no PNG file, or a damaged one, is taken from it.

    Args:
        series: what the csv says.
        image_root: folder ``Images_png``.
        on_slice: called with number and (H, W) uint16 for each slice that is as it should be.
    """
    findings: list[Finding] = []
    pngs, pack = PngSeries(os.path.join(image_root, series.name)), None
    target = packed_path(os.path.join(image_root, series.name))
    if os.path.exists(target):
        try:
            pack = PackedSeries(target)
        except UnreadableSlice as error:
            findings.append(Finding("packed_damaged", series.name, _short(error, image_root)))
    packed_numbers = pack.numbers if pack else []
    outdated = []
    for number in sorted(series.numbers().union(pngs.numbers, packed_numbers)):
        stored, finding = _inspect_slice(series, pngs, number, image_root)
        is_packed = number in packed_numbers
        if pack and stored is not None and not (is_packed and pack.checksum(number) == zlib.crc32(stored)):
            outdated.append(number)
        if is_packed:
            packed_slice, damage = _inspect_slice(series, pack, number, image_root)
            if damage:
                findings.append(Finding("packed_damaged", series.name, damage.message))
            elif stored is None:
                if number in pngs.numbers:
                    findings.append(Finding("png_damaged", finding.where, finding.message))
                stored, finding = packed_slice, None
        if finding:
            findings.append(finding)
        elif on_slice:
            on_slice(number, stored)
    if outdated:
        numbers = ", ".join(map(str, outdated[:10])) + (", ..." if len(outdated) > 10 else "")
        findings.append(Finding("packed_outdated", series.name, f"slices {numbers}"))
    return findings


def _inspect_slice(
    series: SeriesAnnotations, source: PngSeries | PackedSeries, number: int, image_root: str
) -> tuple[np.ndarray | None, Finding | None]:
    """Give a slice, (H, W) uint16, that is as it should be, or what is wrong with it."""
    is_key = number in series.key_slices
    sizes = {series.key_slices[number]} if is_key else set(series.key_slices.values())

    def wrong(kind: str, message: str) -> tuple[None, Finding]:
        role = "key_slice" if is_key else "neighbour"
        return None, Finding(f"{role}_{kind}", f"{series.name}/{number:03d}", message)

    try:
        stored = source.read(number, verify=True)
    except FileNotFoundError:
        return wrong("missing", "not on disk")
    except NotSixteenBit as error:
        return wrong("8_bit", _short(error, image_root))
    except UnreadableSlice as error:
        return wrong("unreadable", _short(error, image_root))
    if stored.shape not in sizes:
        expected = " or ".join(f"{width} x {height}" for height, width in sorted(sizes))
        height, width = stored.shape
        return wrong("size", f"expected {expected}, got {width} x {height}")
    return stored, None


def _short(error: Exception, image_root: str) -> str:
    """Give the message with paths relative to the dataset, the same wherever it lies and however it was named."""
    root, message = os.path.dirname(image_root), str(error)
    for prefix in (os.path.abspath(root), root):
        message = message.replace(os.path.join(prefix, ""), "") if prefix else message
    return message
