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

from .integrity import Finding, SeriesAnnotations, group_by_series, inspect_series, series_name
from .mask_file import encode_mask
from .packed import PackedSeries, packed_path, write_packed
from .png import UnreadableSlice, to_hu
from .series import PngSeries
from .slices import window_hu
from .weak_masks import weak_mask

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

    A packed series that is there is kept up to date also without ``job.pack``. One that has slices of which there are
    no PNG files any more is never written again: it is then the only copy.

    Returns:
        series: its name. fingerprint: of csv rows, and names and sizes of files. findings: as of
        :func:`inspect_series`. masks: as in :mod:`.mask_file`. packed: "yes", "not asked for", "sizes differ", as one
        array cannot hold such slices, or "nothing to pack".
    """
    pngs, target = PngSeries(os.path.join(job.image_root, job.series.name)), _target(job)
    pack = _open_packed(target)
    is_only_copy = pack is not None and not set(pack.numbers) <= set(pngs.numbers)
    files = pack.source if is_only_copy else _hash([(n, os.path.getsize(pngs.path(n))) for n in pngs.numbers])
    fingerprint = _hash([VERSION, asdict(job.series), job.lesions, files])
    is_known = job.done is not None and job.done["fingerprint"] == fingerprint
    is_up_to_date = is_known and pack is not None and pack.source == files
    has_to_pack = (job.pack or os.path.exists(target)) and not is_only_copy and not is_up_to_date
    if is_known and not (has_to_pack and job.done["packed"] in ("yes", "not asked for")):
        state = job.done["packed"]
        if pack is not None:
            state = "yes"
        elif state == "yes":
            state = "not asked for"  # and it is gone
        return {**job.done, "packed": state}
    slices: dict[int, np.ndarray] = {}
    # All slices are kept for the packed file; otherwise only those that masks are made on.
    wanted = {lesion["number"] for lesion in job.lesions}

    def keep(number: int, stored: np.ndarray) -> None:
        if has_to_pack or number in wanted:
            slices[number] = stored

    findings = inspect_series(job.series, job.image_root, packed=is_only_copy, on_slice=keep)
    masks = [_mask(lesion, slices.get(lesion["number"])) for lesion in job.lesions]
    packed = "yes" if is_only_copy else "not asked for"
    if has_to_pack:
        packed = _pack(target, slices, files)
    return {
        "series": job.series.name,
        "fingerprint": fingerprint,
        "findings": [asdict(finding) for finding in findings],
        "masks": masks,
        "packed": packed,
    }


def _target(job: Job) -> str:
    return packed_path(os.path.join(job.image_root, job.series.name))


def _open_packed(target: str) -> PackedSeries | None:
    """None where there is none, or a damaged one."""
    if os.path.exists(target):
        try:
            return PackedSeries(target)
        except UnreadableSlice:
            pass
    return None


def _pack(target: str, slices: dict[int, np.ndarray], files: str) -> str:
    sizes = {image.shape for image in slices.values()}
    if not sizes:
        return "nothing to pack"
    if len(sizes) > 1:
        if os.path.exists(target):
            os.remove(target)  # outdated, and its slices are all among the PNG files
        return "sizes differ"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    numbers = sorted(slices)
    write_packed(target, numbers, (slices[number] for number in numbers), source=files)
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
