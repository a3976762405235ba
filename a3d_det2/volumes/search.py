"""Folders in which CTs may be."""

import json
import os
from collections.abc import Iterator

RESULTS = "lesions.json"
FORMAT = "a3d_det2 lesions"  # that such a file of ours names


def search(path: str, deep: bool = True) -> Iterator[tuple[str, list[str]]]:
    """A folder and, if ``deep``, those in it at any depth, with the names of their files in order. Folders of results
    are left out, with all in them: the label map of a prediction is no CT, and a copy of the CT none of its own."""
    for folder, subfolders, names in os.walk(path):
        if RESULTS in names and read_results(folder) is not None:
            subfolders.clear()
            continue
        if not deep:
            subfolders.clear()
        subfolders.sort()
        yield folder, sorted(names)


def read_results(folder: str) -> dict | None:
    """What lesions.json of a folder of results says; None of any other folder."""
    try:
        with open(os.path.join(folder, RESULTS), encoding="utf-8") as f:
            content = json.load(f)
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None
