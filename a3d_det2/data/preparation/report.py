"""What is wrong with a dataset on disk: the kinds of findings, and the report that puts them together."""

from dataclasses import dataclass

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

# Key slices and lesions of a split, with all rows and without those marked Possibly_noisy.
Counts = tuple[tuple[int, int], tuple[int, int]]


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
class Report:
    """All findings about a dataset.

    Attributes:
        counts: split -> how many key slices and lesions it has.
        series: how many series were looked at.
        findings: all that is wrong, of the csv and of the slices.
    """

    counts: dict[str, Counts]
    series: int
    findings: list[Finding]

    @property
    def can_train(self) -> bool:
        return not any(finding.is_blocking for finding in self.findings)

    def to_dict(self) -> dict:
        """Give the report as JSON takes it: whether training can start, the counts per split, and the findings by
        kind."""
        names = ("key_slices", "lesions", "key_slices_without_noisy", "lesions_without_noisy")
        kinds = {
            kind: {
                "blocking": KINDS[kind][0],
                "meaning": KINDS[kind][1],
                "count": len(group),
                "list": [{"where": finding.where, "message": finding.message} for finding in group],
            }
            for kind, group in self._by_kind().items()
        }
        return {
            "can_train": self.can_train,
            "series": self.series,
            "splits": {
                split: dict(zip(names, [*every, *clean], strict=True)) for split, (every, clean) in self.counts.items()
            },
            "findings": kinds,
        }

    def to_text(self, examples: int = 5) -> str:
        """Give the report to read, with the first ``examples`` findings of each kind."""
        lines = [f"{self.series} series"]
        lines += [f"  {split:6}{counts_text(counts)}" for split, counts in self.counts.items()]
        for is_blocking, title in ((True, "Keeps training from starting"), (False, "Worth knowing")):
            kinds = {kind: group for kind, group in self._by_kind().items() if KINDS[kind][0] == is_blocking}
            lines += ["", f"{title}:"] if kinds else []
            for kind, group in kinds.items():
                lines.append(f"  {len(group)} {KINDS[kind][1]} [{kind}]")
                lines += [f"    {finding.where}: {finding.message}" for finding in group[:examples]]
                lines += [f"    and {len(group) - examples} more"] if len(group) > examples else []
        lines += ["", "Training can start." if self.can_train else "Training cannot start."]
        return "\n".join(lines)

    def _by_kind(self) -> dict[str, list[Finding]]:
        """Group the findings, in the order of ``KINDS``."""
        groups = {kind: [finding for finding in self.findings if finding.kind == kind] for kind in KINDS}
        return {kind: group for kind, group in groups.items() if group}


def counts_text(counts: Counts) -> str:
    (slices, lesions), (clean_slices, clean_lesions) = counts
    return f"{slices} key slices / {lesions} lesions ({clean_slices} / {clean_lesions} without the noisy rows)"
