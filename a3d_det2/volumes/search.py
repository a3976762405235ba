"""Folders in which CTs may be."""

import json
import os
from collections.abc import Iterator

RESULTS, ARCHIVE = "lesions.json", "run.json"
FORMAT, ARCHIVE_FORMAT = "a3d_det2 lesions", "a3d_det2 archive"  # that such files of ours name


def search(path: str, deep: bool = True) -> Iterator[tuple[str, list[str]]]:
    """A folder and, if ``deep``, those in it at any depth, with the names of their files in order. Folders of results
    are left out, with all in them: the label map of a prediction is no CT, and a copy of the CT none of its own."""
    for folder, subfolders, names in os.walk(path):
        is_archive = ARCHIVE in names and read_ours(os.path.join(folder, ARCHIVE), ARCHIVE_FORMAT) is not None
        if is_archive or (RESULTS in names and read_results(folder) is not None):
            subfolders.clear()
            continue
        if not deep:
            subfolders.clear()
        subfolders.sort()
        yield folder, sorted(names)


def read_results(folder: str) -> dict | None:
    """What lesions.json of a folder of results says; None of any other folder."""
    return read_ours(os.path.join(folder, RESULTS), FORMAT)


def read_ours(path: str, kind: str) -> dict | None:
    """What a JSON file says whose format is ``kind``; None if it is none, or cannot be read."""
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("format") == kind else None
