"""Folders in which CTs may be."""

import os
from collections.abc import Iterator

RESULTS = "lesions.json"  # a folder with it holds results


def search(path: str) -> Iterator[tuple[str, list[str]]]:
    """A folder and those in it at any depth, with the names of their files in order. Folders of results are left out,
    with all that is in them: the label map of a prediction is no CT, and a copy of the CT none of its own."""
    for folder, subfolders, names in os.walk(path):
        if RESULTS in names:
            subfolders.clear()
            continue
        subfolders.sort()
        yield folder, sorted(names)
