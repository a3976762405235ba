"""Preparing DeepLesion: each series is verified, packed and given weak masks, once, whatever interrupts it.

The work is done series by series, in any number of processes. A :class:`Journal` keeps what is done; it makes a run
that was killed go on where it stopped, and a second run look only at what has changed.
"""

import hashlib
import json
import multiprocessing
import os
import threading
from collections import defaultdict
from dataclasses import asdict, dataclass

import cv2
import numpy as np

from .annotations import Finding, SeriesAnnotations, group_by_series, inspect_series, key_number, series_name
from ..mask_file import encode_mask
from ..packed import PackedSeries, packed_path, write_packed
from ..png import UnreadableSlice, to_hu
from ..series import PngSeries
from ..slices import window_hu
from ..weak_masks import weak_mask

# Of what prepare_series makes; results of another version are not taken over.
VERSION = 1


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
                "number": key_number(record),
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

    A packed series that is there is kept up to date also without ``job.pack``. No slice is lost that only it has: it is
    written again of the PNG files and, where they are missing or damaged, its own slices.

    Returns:
        series: its name. fingerprint: of csv rows, and of the files as they are afterwards. findings: as of
        :func:`inspect_series`. masks: as in :mod:`.mask_file`. packed: "yes", "not asked for", "nothing to pack",
        "sizes differ", as one array cannot hold such slices, or "damaged", if it cannot be made again as a whole.
    """
    if (
        job.done
        and job.done["fingerprint"] == _fingerprint(job)
        and not (job.pack and job.done["packed"] == "not asked for")
    ):
        return job.done
    target = packed_path(_folder(job))
    has_to_pack = job.pack or os.path.exists(target)
    slices: dict[int, np.ndarray] = {}
    # All slices are kept for the packed file; otherwise only those that masks are made on.
    wanted = {lesion["number"] for lesion in job.lesions}

    def keep(number: int, stored: np.ndarray) -> None:
        if has_to_pack or number in wanted:
            slices[number] = stored

    findings = inspect_series(job.series, job.image_root, on_slice=keep)
    masks = [_mask(lesion, slices.get(lesion["number"])) for lesion in job.lesions]
    packed = "not asked for"
    if has_to_pack:
        packed = _pack(job, slices)
    if packed == "yes":
        findings = [finding for finding in findings if finding.kind not in ("packed_damaged", "packed_outdated")]
    return {
        "series": job.series.name,
        "fingerprint": _fingerprint(job),
        "findings": [asdict(finding) for finding in findings],
        "masks": masks,
        "packed": packed,
    }


def _folder(job: Job) -> str:
    return os.path.join(job.image_root, job.series.name)


def _fingerprint(job: Job) -> str:
    """Changes with the rows of the series, the names and sizes of the PNG files, and what the packed file holds."""
    pngs, pack = PngSeries(_folder(job)), _open_packed(job)
    files = [(number, _size(pngs.path(number))) for number in pngs.numbers]
    held = [(n, pack.checksum(n)) for n in pack.numbers] if isinstance(pack, PackedSeries) else pack
    return _hash([VERSION, asdict(job.series), job.lesions, files, held])


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else -1  # a link that leads nowhere


def _open_packed(job: Job) -> PackedSeries | str:
    """The packed series, "none" or "damaged"."""
    target = packed_path(_folder(job))
    if not os.path.exists(target):
        return "none"
    try:
        return PackedSeries(target)
    except UnreadableSlice:
        return "damaged"


def _pack(job: Job, slices: dict[int, np.ndarray]) -> str:
    sizes = {image.shape for image in slices.values()}
    if _open_packed(job) == "damaged" and not job.series.numbers() <= set(slices):
        return "damaged"  # left for whoever can save the slices that are nowhere else
    if len(sizes) != 1:
        return "sizes differ" if sizes else "nothing to pack"
    target, numbers = packed_path(_folder(job)), sorted(slices)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    write_packed(target, numbers, (slices[number] for number in numbers))
    return "yes"


def _hash(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _mask(lesion: dict, stored: np.ndarray | None) -> dict:
    entry = {key: lesion[key] for key in ("row", "image_id", "bbox")}
    if stored is None:
        return {**entry, "source": "none"}
    mask, source = weak_mask(window_hu(to_hu(stored)), lesion["bbox"], lesion["recist"])
    return {**entry, "source": source, **encode_mask(mask)}


def findings_of(result: dict) -> list[Finding]:
    """Those in a result of :func:`prepare_series`."""
    return [Finding(**finding) for finding in result["findings"]]


def start_worker() -> None:
    """For the workers of a process pool: one thread each, and an end when their parent is killed."""
    cv2.setNumThreads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


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
