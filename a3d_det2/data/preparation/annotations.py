"""What is wrong with DL_info.csv, read row by row."""

import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from ...files import slice_number
from ..dl_info import SPLITS, Row, read_rows
from ..recist import recist_box
from ..splits import split_files
from .report import Counts, Finding, counts_text

OFFICIAL_COUNTS: dict[str, Counts] = {
    "train": ((22496, 22919), (22478, 22901)),
    "val": ((4793, 4889), (4791, 4887)),
    "test": ((4831, 4927), (4817, 4912)),
}
# Slice intervals and pixel sizes in mm beyond which a value is more likely wrong than real.
INTERVALS = (0.25, 10.0)
PIXEL_SIZES = (0.15, 1.5)


@dataclass(frozen=True)
class Annotations:
    """What :func:`check_annotations` makes of a file.

    Attributes:
        records: one dict per readable row, in the order of the file: as those of :func:`load_deeplesion`, with one
            annotation each, and relative file names.
        findings: what is wrong.
        counts: split -> how many key slices and lesions it has.
    """

    records: list[dict]
    findings: list[Finding]
    counts: dict[str, Counts]


def check_annotations(csv_path: str) -> Annotations:
    """Read every row of DL_info.csv, whatever is wrong with the others."""
    table = os.path.basename(csv_path)
    rows: list[tuple[Row, dict]] = []
    findings: list[Finding] = []
    try:
        for row in read_rows(csv_path):
            try:
                record = row.key_slice("")
                record["annotations"].append(row.lesion())
                _ = row.split, row.is_noisy
                rows.append((row, record))
            except ValueError as error:
                findings.append(Finding("row", f"line {row.line}", str(error).replace(csv_path, table)))
    except (OSError, ValueError) as error:
        findings.append(Finding("csv", table, str(error).replace(csv_path, table)))
    findings += [*_check_splits(rows), *_check_duplicates(rows)]
    for row, record in rows:
        findings += _check_row(row, record)
    counts = {split: _count([row for row, _ in rows if row.split == split]) for split in SPLITS}
    has_splits = rows and split_files(os.path.join(os.path.dirname(csv_path), "splits"))
    if not (counts["train"][1][1] or has_splits):
        findings.append(Finding("empty", table, f"{len(rows)} readable rows, 0 to train on"))
    for split, found in counts.items():
        if found != OFFICIAL_COUNTS[split]:
            message = f"{counts_text(found)}; the official file has {counts_text(OFFICIAL_COUNTS[split])}"
            findings.append(Finding("counts", split, message))
    return Annotations([record for _, record in rows], findings, counts)


def _count(rows: list[Row]) -> Counts:
    clean = [row for row in rows if not row.is_noisy]
    return tuple((len({row.image_id for row in some}), len(some)) for some in (rows, clean))


def _check_splits(rows: list[tuple[Row, dict]]) -> Iterator[Finding]:
    splits = defaultdict(set)
    for row, _ in rows:
        splits[row.patient].add(row.split)
    for patient, names in splits.items():
        if len(names) > 1:
            yield Finding("patient_in_two_splits", f"patient {patient}", f"in {', '.join(sorted(names))}")


def _check_duplicates(rows: list[tuple[Row, dict]]) -> Iterator[Finding]:
    first: dict[tuple, Row] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for row, record in rows:
        other = first.setdefault((row.image_id, *record["annotations"][0]["bbox"]), row)
        if other is not row:
            yield Finding("duplicate", f"line {row.line}", f"{row.image_id} and its box are in line {other.line} too")
        size = (record["width"], record["height"])
        if (above := sizes.setdefault(row.image_id, size)) != size:
            message = f"Image_size {size[0]}, {size[1]} of {row.image_id} was {above} in a row above"
            yield Finding("row", f"line {row.line}", message)


def _check_row(row: Row, record: dict) -> Iterator[Finding]:
    def finding(kind: str, message: str) -> Finding:
        return Finding(kind, f"line {row.line}", f"{row.image_id}: {message}")

    spacing = (*record["spacing"], record["slice_interval"])
    limits = (PIXEL_SIZES, PIXEL_SIZES, INTERVALS)
    if not all(0 < value < math.inf for value in spacing):
        yield finding("spacing_invalid", row.values["Spacing_mm_px_"])
    elif not all(low <= value <= high for value, (low, high) in zip(spacing, limits, strict=True)):
        yield finding("spacing_outlier", row.values["Spacing_mm_px_"])
    key, (first, last) = slice_number(record["file_name"]), record["slice_range"]
    if key in (first, last):
        yield finding("key_slice_at_end", f"Slice_range {first}, {last}")
    elif not first < key < last:
        yield finding("key_slice_outside", f"Slice_range {first}, {last}")
    (lesion,) = record["annotations"]
    expected = recist_box(lesion["recist"])
    if row.box_passes_border():
        yield finding("box_outside", row.values["Bounding_boxes"])
    elif max(abs(expected - lesion["bbox"])) > 1:
        text = ", ".join(f"{value + 1:g}" for value in expected)
        yield finding("box_and_recist", f"expected {text}, got {row.values['Bounding_boxes']}")
