"""One series verified, packed and given weak masks; independent of the others, so that processes can share the work."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass

import numpy as np

from ...files import slice_number
from ...segmentation import encode_mask
from ..packed import PackedSeries, packed_path, write_packed
from ..png import UnreadableSlice, to_hu
from ..series import PngSeries
from ..slices import window_hu
from ..weak_masks import weak_mask
from .slices import SeriesAnnotations, annotations_of_series, inspect_series, records_by_series

VERSION = 1  # of what prepare_series makes; results of another version are not taken over


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
    """Make one job per series, ordered by name.

    Args:
        records: those of :func:`.check_annotations`.
        image_root: folder ``Images_png``.
        pack: whether to write packed series.
        done: series name -> result of an earlier run.
    """
    return [
        Job(annotations_of_series(name, group), tuple(map(_lesion, group)), image_root, pack, done.get(name))
        for name, group in records_by_series(records).items()
    ]


def _lesion(record: dict) -> dict:
    (lesion,) = record["annotations"]
    number = slice_number(record["file_name"])
    return {"image_id": record["image_id"], "number": number, **{key: lesion[key] for key in ("row", "bbox", "recist")}}


def prepare_series(job: Job) -> dict:
    """Verify, pack and mask one series, or return ``job.done`` where nothing has changed since.

    A packed series that is there is kept up to date also without ``job.pack``. No slice is lost that only it has: it is
    written again of the PNG files and, where they are missing or damaged, its own slices.

    Returns:
        series: its name. fingerprint: of csv rows, and of the files as they are afterwards. findings: as of
        :func:`inspect_series`. masks: as in :mod:`.mask_file`. packed: "yes", "not asked for", "nothing to pack",
        "sizes differ", as one array cannot hold such slices, or "damaged", if it cannot be made again as a whole.
    """
    lacks_pack = job.done and job.pack and job.done["packed"] == "not asked for"
    if job.done and not lacks_pack and job.done["fingerprint"] == _fingerprint(job):
        return job.done
    has_to_pack = job.pack or os.path.exists(packed_path(_folder(job)))
    slices: dict[int, np.ndarray] = {}
    # All slices are kept for the packed file; otherwise only those that masks are made on.
    wanted = {lesion["number"] for lesion in job.lesions}

    def keep(number: int, stored: np.ndarray) -> None:
        if has_to_pack or number in wanted:
            slices[number] = stored

    findings = inspect_series(job.series, job.image_root, on_slice=keep)
    masks = [_mask(lesion, slices.get(lesion["number"])) for lesion in job.lesions]
    packed = _pack(job, slices) if has_to_pack else "not asked for"
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
    """Make a text that changes with the rows of the series, the names and sizes of the PNG files, and what the packed
    file holds."""
    pngs, pack = PngSeries(_folder(job)), _open_packed(job)
    paths = {number: pngs.path(number) for number in pngs.numbers}
    # A link that leads nowhere has no size.
    files = [(n, os.path.getsize(path) if os.path.exists(path) else -1) for n, path in paths.items()]
    held = [(n, pack.checksum(n)) for n in pack.numbers] if isinstance(pack, PackedSeries) else pack
    content = json.dumps([VERSION, asdict(job.series), job.lesions, files, held], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _open_packed(job: Job) -> PackedSeries | str:
    """Open the packed series; "none" or "damaged" where that cannot be."""
    target = packed_path(_folder(job))
    try:
        return PackedSeries(target) if os.path.exists(target) else "none"
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


def _mask(lesion: dict, stored: np.ndarray | None) -> dict:
    entry = {key: lesion[key] for key in ("row", "image_id", "bbox")}
    if stored is None:
        return {**entry, "source": "none"}
    mask, source = weak_mask(window_hu(to_hu(stored)), lesion["bbox"], lesion["recist"])
    return {**entry, "source": source, **encode_mask(mask)}
