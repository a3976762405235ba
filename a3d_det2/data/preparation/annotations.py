"""What is wrong with a DeepLesion on disk, and whether training can start with it.

:func:`check_annotations` reads DL_info.csv, :func:`inspect_series` the slices of one series; :class:`Report` puts what
they found together.
"""

import math
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..dl_info import SPLITS, Row, read_rows
from ..packed import PackedSeries, packed_path
from ..png import NotSixteenBit, UnreadableSlice
from ..recist import recist_box
from ..series import PngSeries
from ..splits import split_files

# Key slices and lesions of the official file, with all rows and without those marked Possibly_noisy.
OFFICIAL_COUNTS = {
    "train": ((22496, 22919), (22478, 22901)),
    "val": ((4793, 4889), (4791, 4887)),
    "test": ((4831, 4927), (4817, 4912)),
}
# Slice intervals and pixel sizes in mm beyond which a value is more likely wrong than real.
INTERVALS = (0.25, 10.0)
PIXEL_SIZES = (0.15, 1.5)

# Kind of finding -> whether it keeps training from starting, and what it means.
KINDS = {
    "csv": (True, "DL_info.csv cannot be read"),
    "empty": (True, "no lesion to train on: no rows, or none in the train split and no split file beside the csv"),
    "row": (True, "rows with a malformed value, such as a box whose corners are swapped"),
    "key_slice_missing": (True, "key slices that are not on disk"),
    "key_slice_unreadable": (True, "key slices that are no complete PNG"),
    "key_slice_8_bit": (True, "key slices that are not 16-bit"),
    "key_slice_size": (True, "key slices whose size disagrees with the csv"),
    "packed_damaged": (True, "packed series that are damaged"),
    "packed_outdated": (
        True,
        "packed series that differ from the PNG files; prepare_deeplesion.py --again packs them again",
    ),
    "patient_in_two_splits": (True, "patients in two splits"),
    "png_damaged": (False, "PNG files that are damaged; the packed series has the slices"),
    "neighbour_missing": (False, "slices within a Slice_range that are not on disk; others take their places"),
    "neighbour_unreadable": (False, "slices that are no complete PNG; others take their places"),
    "neighbour_8_bit": (False, "slices that are not 16-bit; others take their places"),
    "neighbour_size": (False, "slices whose size disagrees with the csv; others take their places"),
    "spacing_invalid": (False, "rows without a positive Spacing_mm_px_; the key slice is repeated for its neighbours"),
    "spacing_outlier": (False, "rows with an implausible Spacing_mm_px_"),
    "duplicate": (False, "rows that repeat another one's key slice and box; they count twice"),
    "box_and_recist": (False, "boxes that are not the RECIST points with their margin"),
    "box_outside": (False, "boxes that pass the border of the image; they are clipped"),
    "key_slice_at_end": (False, "key slices that are the first or last of their Slice_range"),
    "key_slice_outside": (False, "key slices outside their Slice_range"),
    "counts": (False, "splits whose counts are not those of the official DL_info.csv"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: key of ``KINDS``.
        where: file, line or patient.
        message: what was expected and what came.
    """

    kind: str
    where: str
    message: str

    @property
    def is_blocking(self) -> bool:
        return KINDS[self.kind][0]


@dataclass(frozen=True)
class Annotations:
    """What :func:`check_annotations` makes of a file.

    Attributes:
        records: one dict per readable row, in the order of the file: as those of :func:`load_deeplesion`, with one
            annotation each, and relative file names.
        findings: what is wrong.
        counts: split -> key slices and lesions, with all rows and without the noisy ones, as ``OFFICIAL_COUNTS``.
    """

    records: list[dict]
    findings: list[Finding]
    counts: dict[str, tuple[tuple[int, int], tuple[int, int]]]


def check_annotations(csv_path: str) -> Annotations:
    """Read every row of DL_info.csv, whatever is wrong with the others."""
    records: list[dict] = []
    findings: list[Finding] = []
    rows: list[Row] = []
    try:
        for row in read_rows(csv_path):
            try:
                record = row.key_slice("")
                record["annotations"].append(row.lesion())
                _ = row.split, row.is_noisy
            except ValueError as error:
                findings.append(Finding("row", f"line {row.line}", _without_folder(error, csv_path)))
            else:
                rows.append(row)
                records.append(record)
    except (OSError, ValueError) as error:
        findings.append(Finding("csv", os.path.basename(csv_path), _without_folder(error, csv_path)))
    findings += _check_splits(rows)
    findings += _check_duplicates(rows, records)
    for row, record in zip(rows, records, strict=True):
        findings += _check_row(row, record)
    counts = {split: _count(rows, split) for split in SPLITS}
    if not counts["train"][1][1] and not (rows and split_files(os.path.join(os.path.dirname(csv_path), "splits"))):
        findings.append(Finding("empty", os.path.basename(csv_path), f"{len(rows)} readable rows, 0 to train on"))
    for split, found in counts.items():
        if found != OFFICIAL_COUNTS[split]:
            message = f"{_counts_text(found)}; the official file has {_counts_text(OFFICIAL_COUNTS[split])}"
            findings.append(Finding("counts", split, message))
    return Annotations(records, findings, counts)


def _without_folder(error: Exception, csv_path: str) -> str:
    return str(error).replace(csv_path, os.path.basename(csv_path))


def _count(rows: list[Row], split: str) -> tuple[tuple[int, int], tuple[int, int]]:
    every = [row for row in rows if row.split == split]
    clean = [row for row in every if not row.is_noisy]
    return tuple((len({row.image_id for row in some}), len(some)) for some in (every, clean))


def _counts_text(counts) -> str:
    (slices, lesions), (clean_slices, clean_lesions) = counts
    return f"{slices} key slices / {lesions} lesions ({clean_slices} / {clean_lesions} without the noisy rows)"


def _check_splits(rows: list[Row]) -> Iterable[Finding]:
    splits = defaultdict(set)
    for row in rows:
        splits[row.patient].add(row.split)
    for patient, names in splits.items():
        if len(names) > 1:
            yield Finding("patient_in_two_splits", f"patient {patient}", f"in {', '.join(sorted(names))}")


def _check_duplicates(rows: list[Row], records: list[dict]) -> Iterable[Finding]:
    first: dict[tuple, Row] = {}
    sizes: dict[str, tuple] = {}
    for row, record in zip(rows, records, strict=True):
        other = first.setdefault((row.image_id, *record["annotations"][0]["bbox"]), row)
        if other is not row:
            yield Finding("duplicate", f"line {row.line}", f"{row.image_id} and its box are in line {other.line} too")
        size = sizes.setdefault(row.image_id, (record["width"], record["height"]))
        if size != (record["width"], record["height"]):
            message = f"Image_size {record['width']}, {record['height']} of {row.image_id} was {size} in a row above"
            yield Finding("row", f"line {row.line}", message)


def _check_row(row: Row, record: dict) -> Iterable[Finding]:
    where = f"line {row.line}"
    spacing = (*record["spacing"], record["slice_interval"])
    limits = (PIXEL_SIZES, PIXEL_SIZES, INTERVALS)
    if not all(0 < value < math.inf for value in spacing):
        yield Finding("spacing_invalid", where, f"{row.image_id}: {row.values['Spacing_mm_px_']}")
    elif not all(low <= value <= high for value, (low, high) in zip(spacing, limits, strict=True)):
        yield Finding("spacing_outlier", where, f"{row.image_id}: {row.values['Spacing_mm_px_']}")
    key, (first, last) = key_number(record), record["slice_range"]
    if key in (first, last):
        yield Finding("key_slice_at_end", where, f"{row.image_id}: Slice_range {first}, {last}")
    elif not first < key < last:
        yield Finding("key_slice_outside", where, f"{row.image_id}: Slice_range {first}, {last}")
    (lesion,) = record["annotations"]
    if row.box_passes_border():
        yield Finding("box_outside", where, f"{row.image_id}: {row.values['Bounding_boxes']}")
    else:
        expected = recist_box(lesion["recist"])
        if max(abs(a - b) for a, b in zip(expected, lesion["bbox"], strict=True)) > 1:
            text = ", ".join(f"{value + 1:g}" for value in expected)
            yield Finding(
                "box_and_recist", where, f"{row.image_id}: expected {text}, got {row.values['Bounding_boxes']}"
            )


def key_number(record: dict) -> int:
    return int(os.path.splitext(os.path.basename(record["file_name"]))[0])


def series_name(record: dict) -> str:
    return os.path.basename(os.path.dirname(record["file_name"]))


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
        """Of the slices that there should be."""
        return set(self.key_slices).union(*(range(first, last + 1) for first, last in self.ranges))


def group_by_series(records: list[dict]) -> list[SeriesAnnotations]:
    """Ordered by name."""
    groups = defaultdict(list)
    for record in records:
        groups[series_name(record)].append(record)
    return [
        SeriesAnnotations(
            name,
            {key_number(record): (record["height"], record["width"]) for record in group},
            tuple(sorted({record["slice_range"] for record in group})),
        )
        for name, group in sorted(groups.items())
    ]


def inspect_series(series: SeriesAnnotations, image_root: str, on_slice=None) -> list[Finding]:
    """Decode every slice of a series that is on disk, and look for those that are not.

    Where there is a packed series, its checksums are looked at, and whether it holds what the PNG files do; a slice of
    which there is no PNG file, or a damaged one, is taken from it.

    Args:
        series: what the csv says.
        image_root: folder ``Images_png``.
        on_slice: called with number and (H, W) uint16 for each slice that is as it should be.
    """
    findings = []
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
        if number in packed_numbers:
            packed_slice, damage = _inspect_slice(series, pack, number, image_root)
            if damage:
                findings.append(Finding("packed_damaged", series.name, damage.message))
            if stored is not None:
                if pack.checksum(number) != zlib.crc32(stored):
                    outdated.append(number)
            elif packed_slice is not None:
                if number in pngs.numbers:
                    findings.append(Finding("png_damaged", finding.where, finding.message))
                stored, finding = packed_slice, None
        elif pack and stored is not None:
            outdated.append(number)
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
    """A slice as it should be, or what is wrong with it."""
    is_key = number in series.key_slices
    role, where = "key_slice" if is_key else "neighbour", f"{series.name}/{number:03d}"
    sizes = {series.key_slices[number]} if is_key else set(series.key_slices.values())
    if number not in source.numbers:
        return None, Finding(f"{role}_missing", where, "not on disk")
    try:
        stored = source.read(number, verify=True)
    except NotSixteenBit as error:
        return None, Finding(f"{role}_8_bit", where, _short(error, image_root))
    except UnreadableSlice as error:
        return None, Finding(f"{role}_unreadable", where, _short(error, image_root))
    except FileNotFoundError:  # a link that leads nowhere
        return None, Finding(f"{role}_missing", where, "not on disk")
    if stored.shape not in sizes:
        expected = " or ".join(f"{width} x {height}" for height, width in sorted(sizes))
        height, width = stored.shape
        return None, Finding(f"{role}_size", where, f"expected {expected}, got {width} x {height}")
    return stored, None


def _short(error: Exception, image_root: str) -> str:
    """The message with paths relative to the dataset, the same wherever it lies and however it was named."""
    root, message = os.path.dirname(image_root), str(error)
    for prefix in (os.path.abspath(root), root):
        message = message.replace(os.path.join(prefix, ""), "") if prefix else message
    return message


@dataclass
class Report:
    """All findings about a dataset."""

    annotations: Annotations
    series: int
    findings: list[Finding]

    @property
    def can_train(self) -> bool:
        return not any(finding.is_blocking for finding in self.findings)

    def to_dict(self) -> dict:
        """For JSON: whether training can start, the counts per split, and the findings by kind."""
        by_kind = defaultdict(list)
        for finding in self.findings:
            by_kind[finding.kind].append({"where": finding.where, "message": finding.message})
        return {
            "can_train": self.can_train,
            "series": self.series,
            "splits": {
                split: {
                    "key_slices": slices,
                    "lesions": lesions,
                    "key_slices_without_noisy": clean_slices,
                    "lesions_without_noisy": clean_lesions,
                }
                for split, ((slices, lesions), (clean_slices, clean_lesions)) in self.annotations.counts.items()
            },
            "findings": {
                kind: {"blocking": blocking, "meaning": meaning, "count": len(by_kind[kind]), "list": by_kind[kind]}
                for kind, (blocking, meaning) in KINDS.items()
                if by_kind[kind]
            },
        }

    def to_text(self, examples: int = 5) -> str:
        """The same to read, with the first ``examples`` of each kind."""
        lines = [f"{self.series} series"]
        for split, counts in self.annotations.counts.items():
            lines.append(f"  {split:6}{_counts_text(counts)}")
        counter = Counter(finding.kind for finding in self.findings)
        for blocking, title in ((True, "Keeps training from starting"), (False, "Worth knowing")):
            kinds = [kind for kind, (blocks, _) in KINDS.items() if blocks == blocking and counter[kind]]
            if kinds:
                lines += ["", f"{title}:"]
            for kind in kinds:
                lines.append(f"  {counter[kind]} {KINDS[kind][1]} [{kind}]")
                some = [finding for finding in self.findings if finding.kind == kind]
                lines += [f"    {finding.where}: {finding.message}" for finding in some[:examples]]
                if len(some) > examples:
                    lines.append(f"    and {len(some) - examples} more")
        lines += ["", "Training can start." if self.can_train else "Training cannot start."]
        return "\n".join(lines)
