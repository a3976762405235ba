"""Preparing DeepLesion: each series is verified, packed and given weak masks, once, whatever interrupts it.

The work is done series by series, in any number of processes. A :class:`Journal` keeps what is done; it makes a run
that was killed go on where it stopped, and a second run look only at what has changed.
"""

import hashlib
import json
import os
from collections import defaultdict
from dataclasses import asdict, dataclass

import numpy as np

from .integrity import Finding, SeriesAnnotations, group_by_series, inspect_series, series_name
from .mask_file import encode_mask
from .packed import PackedSeries, packed_path, write_packed
from .png import UnreadableSlice, to_hu
from .series import PngSeries
from .slices import window_hu
from .weak_masks import weak_mask


@dataclass(frozen=True)
class Job:
    """What there is to do for one series.

    Attributes:
        series: what the csv says.
        lesions: one dict per row, with row, image_id, number (of the key slice), bbox and recist.
        image_root: folder ``Images_png``.
        pack: whether to write the packed series.
        done: the result of an earlier run, or None.
    """

    series: SeriesAnnotations
    lesions: tuple[dict, ...]
    image_root: str
    pack: bool
    done: dict | None


def make_jobs(records: list[dict], image_root: str, pack: bool, done: dict[str, dict]) -> list[Job]:
    """One job per series, ordered by name.

    Args:
        records: those of :func:`check_annotations`.
        image_root: folder ``Images_png``.
        pack: whether to write packed series.
        done: series name -> result of an earlier run.
    """
    lesions = defaultdict(list)
    for record in records:
        (lesion,) = record["annotations"]
        lesions[series_name(record)].append(
            {
                "row": lesion["row"],
                "image_id": record["image_id"],
                "number": int(os.path.splitext(os.path.basename(record["file_name"]))[0]),
                "bbox": lesion["bbox"],
                "recist": lesion["recist"],
            }
        )
    return [
        Job(series, tuple(lesions[series.name]), image_root, pack, done.get(series.name))
        for series in group_by_series(records)
    ]


def prepare_series(job: Job) -> dict:
    """Verify, pack and mask one series, or return ``job.done`` where nothing has changed since.

    Returns:
        series: its name. fingerprint: of csv rows and files. findings: as of :func:`inspect_series`. masks: as in
        :mod:`.mask_file`. packed: "yes", "not asked for", or "sizes differ", as one array cannot hold such slices.
    """
    folder = os.path.join(job.image_root, job.series.name)
    target = packed_path(folder)
    files = _files(folder, target)
    fingerprint = _hash([asdict(job.series), job.lesions, files])
    if job.done and job.done["fingerprint"] == fingerprint and (not job.pack or _is_packed(job.done, target, files)):
        return job.done
    slices: dict[int, np.ndarray] = {}
    from_png = os.path.isdir(folder)
    pack = job.pack and from_png
    # All slices are kept for the packed file; otherwise only those that masks are made on.
    wanted = {lesion["number"] for lesion in job.lesions}

    def keep(number: int, stored: np.ndarray) -> None:
        if pack or number in wanted:
            slices[number] = stored

    findings = inspect_series(job.series, job.image_root, packed=not from_png, on_slice=keep)
    masks = [_mask(lesion, slices.get(lesion["number"])) for lesion in job.lesions]
    packed = "not asked for" if from_png else "yes"
    if pack:
        packed = "yes" if len({image.shape for image in slices.values()}) == 1 else "sizes differ"
        if packed == "yes":
            os.makedirs(os.path.dirname(target), exist_ok=True)
            numbers = sorted(slices)
            write_packed(target, numbers, (slices[number] for number in numbers), source=files)
    if from_png and packed != "yes" and os.path.exists(target):
        os.remove(target)  # it was made of other files
    return {
        "series": job.series.name,
        "fingerprint": fingerprint,
        "findings": [asdict(finding) for finding in findings],
        "masks": masks,
        "packed": packed,
    }


def _files(folder: str, target: str) -> str:
    """Changes with the names and sizes of the files; where the PNG files were removed after packing, as it was then."""
    if not os.path.isdir(folder) and os.path.exists(target):
        try:
            return PackedSeries(target).source
        except UnreadableSlice:
            return "damaged"
    series = PngSeries(folder)
    return _hash([(number, os.path.getsize(series.path(number))) for number in series.numbers])


def _hash(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_packed(done: dict, target: str, files: str) -> bool:
    """Whether an earlier run has packed what there is to pack, and the file is whole."""
    if done["packed"] != "yes":
        return done["packed"] == "sizes differ"
    try:
        return PackedSeries(target).source == files
    except (UnreadableSlice, FileNotFoundError):
        return False


def _mask(lesion: dict, stored: np.ndarray | None) -> dict:
    entry = {"row": lesion["row"], "image_id": lesion["image_id"]}
    if stored is None:
        return {**entry, "source": "none"}
    mask, source = weak_mask(window_hu(to_hu(stored)), lesion["bbox"], lesion["recist"])
    return {**entry, "source": source, **encode_mask(mask)}


def findings_of(result: dict) -> list[Finding]:
    """Those in a result of :func:`prepare_series`."""
    return [Finding(**finding) for finding in result["findings"]]


class Journal:
    """Results of :func:`prepare_series`, one JSON line each, appended as they come.

    A line that was cut off when a run was killed is dropped, and its series is done again.

    Args:
        path: of the file; made if it is not there.
    """

    def __init__(self, path: str):
        self.path = path
        self.results: dict[str, dict] = {}
        self._file = None
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as f:
                for line in f:
                    result = _parse(line)
                    if result:
                        self.results[result["series"]] = result

    def append(self, result: dict) -> None:
        """Keep a result, unless it is kept already."""
        if self.results.get(result["series"]) == result:
            return
        self.results[result["series"]] = result
        if self._file is None:
            self._rewrite()  # without a line that was cut off, which the next one would be glued to
        else:
            self._file.write(_line(result))
            self._file.flush()

    def _rewrite(self) -> None:
        self.close()
        with open(f"{self.path}.part", "w", encoding="utf-8") as f:
            f.writelines(_line(self.results[name]) for name in sorted(self.results))
        os.replace(f"{self.path}.part", self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def finish(self, series: set[str]) -> None:
        """Put the lines in order and drop those of series that are no more."""
        self.results = {name: result for name, result in self.results.items() if name in series}
        self._rewrite()
        self.close()

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None


def _line(result: dict) -> str:
    return json.dumps(result, sort_keys=True) + "\n"


def _parse(line: str) -> dict | None:
    try:
        result = json.loads(line)
        if {"series", "fingerprint", "findings", "masks", "packed"} <= result.keys():
            return result
    except (ValueError, AttributeError):
        pass
    return None
