"""Folders -> the rows of a manifest, by the headers of the files alone."""

import os
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from tqdm import tqdm

from ...data.workers import start_worker
from ...volumes.dicom import list_series
from ...volumes.reading import list_volumes
from ...volumes.search import search
from ..quiet import hide_patient_names
from .manifest import Item, item_problem
from .reading import SPAWN


class Found(NamedTuple):
    """A volume in a folder; ``problem`` says why it cannot be read there, "" if it can."""

    path: str
    uid: str
    name: str
    problem: str


@dataclass
class Scan:
    """The volumes under a folder.

    Attributes:
        items: those that can be read, by their ids: of a DICOM series its UID, of others the path below the folder.
        problems: reasons why others cannot, and how many there are for each.
    """

    items: list[Item] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)


def scan(root: str, workers: int = 1) -> Scan:
    """Find the volumes under a folder, at any depth.

    Args:
        root: the folder.
        workers: processes that read headers.

    Raises:
        FileNotFoundError: if there is no such folder.
        ImportError: if pydicom or nibabel is not installed.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"{root}: no such folder")
    root = os.path.abspath(root)
    items: dict[str, Item] = {}
    result, by_uid = Scan(), defaultdict(list)
    folders = [folder for folder, names in search(root) if names]
    with ProcessPoolExecutor(workers, SPAWN, initializer=start_worker) as pool:
        for volumes in tqdm(pool.map(scan_folder, folders), "folders", len(folders), unit="folder"):
            for one in volumes:
                if one.uid:
                    by_uid[one.uid].append(one)
                else:
                    _add(result, items, _item(one, root), one.problem)
    for uid, parts in by_uid.items():
        paths = sorted({one.path for one in parts})
        if len(paths) > 1 and not _are_copies(uid, paths):
            paths, parts = _together(uid, paths, root)
        usable = [one for one in parts if not one.problem]
        _add(result, items, Item(uid, paths[0], uid), "" if usable else parts[0].problem)
    result.items = sorted(items.values())
    return result


def scan_folder(folder: str, deep: bool = False) -> list[Found]:
    """The volumes in a folder, without those in folders below unless ``deep``."""
    hide_patient_names()
    return [Found(one.path, one.uid, one.name, one.problem) for one in list_volumes(folder, deep=deep)]


def _item(one: Found, root: str) -> Item:
    """Of a volume without a UID."""
    name = os.path.relpath(one.path, root)
    for extension in (".nii.gz", ".nii"):
        if name.lower().endswith(extension):
            return Item(name[: -len(extension)], one.path)
    return Item(os.path.normpath(os.path.join(name, one.name)), one.path, one.name)


def _add(result: Scan, items: dict[str, Item], item: Item, problem: str) -> None:
    problem = problem or _without_name(item_problem(item))
    if not problem and item.id in items:
        problem = "another volume has its id"
    if problem:
        result.problems[problem] += 1
    else:
        items[item.id] = item


def _without_name(problem: str) -> str:
    """A problem of an item, so that those of one kind are counted together."""
    return problem.partition(", got ")[0]


def _are_copies(uid: str, paths: list[str]) -> bool:
    """Whether folders have the same images of a series, rather than each some of them."""

    def images(path: str) -> set[str]:
        return {image.instance for one in list_series(path, deep=False) if one.uid == uid for image in one.slices}

    first = images(paths[0])
    return "" not in first and all(images(path) == first for path in paths[1:])


def _together(uid: str, paths: list[str], root: str) -> tuple[list[str], list[Found]]:
    """The folder that has all slices of a series, and what can be read there."""
    folder = os.path.commonpath(paths)
    if folder == root:  # which is not searched as a whole for each of its series
        problem = f"expected the slices of a series in one folder below {root}, got several"
        return [folder], [Found(folder, uid, "", problem)]
    return [folder], [one for one in scan_folder(folder, deep=True) if one.uid == uid]
