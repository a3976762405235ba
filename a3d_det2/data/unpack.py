"""Bring a downloaded DeepLesion, zip files or folders, into Images_png/SERIES/NNN.png."""

import functools
import os
import re
import zipfile
import zlib
from collections import defaultdict

_MEMBER = re.compile(r"(?:^|/)(\d+_\d+_\d+)/(\d+\.png)$")
_SERIES = re.compile(r"\d+_\d+_\d+$")


class DamagedArchive(ValueError):
    """A zip file that has to be downloaded again."""


def find_sources(folders: list[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """Look through downloads, however they are nested.

    Args:
        folders: folders, or zip files themselves.

    Returns:
        the zip files, series name -> folder of its slices, and the files called DL_info.csv.

    Raises:
        FileNotFoundError: if one of ``folders`` is not there.
        ValueError: if a series lies in two folders, or a file is no zip.
    """
    zips, series, tables = [], {}, []
    for top in folders:
        if os.path.isfile(top):
            if not top.endswith(".zip"):
                raise ValueError(f"{top}: expected a folder or a zip file.")
            zips.append(top)
        elif not os.path.isdir(top):
            raise FileNotFoundError(f"{top}: no such file or folder.")
        for folder, subfolders, names in os.walk(top, followlinks=True):
            subfolders.sort()
            for name in list(subfolders):
                if _SERIES.fullmatch(name):
                    subfolders.remove(name)  # nothing but slices below
                    path = os.path.join(folder, name)
                    other = series.setdefault(name, path)
                    if os.path.realpath(other) != os.path.realpath(path):
                        raise ValueError(
                            f"Series {name} lies in {other} and in {path}. Put its slices into one folder."
                        )
            zips += [os.path.join(folder, name) for name in sorted(names) if name.endswith(".zip")]
            tables += [os.path.join(folder, name) for name in names if name == "DL_info.csv"]
    return zips, series, tables


def series_in_zip(path: str) -> dict[str, list[str]]:
    """Series name -> members of the zip file that are its slices; other members are not looked at.

    Raises:
        DamagedArchive: if it is no complete zip file.
    """
    members = defaultdict(list)
    for name in _open(path).namelist():
        match = _MEMBER.search(name)
        if match:
            members[match[1]].append(name)
    return dict(members)


def unpack_series(path: str, members: list[str], image_root: str) -> int:
    """Unpack the slices of a series that are not yet there in full length, each in one step.

    Returns:
        how many were unpacked.

    Raises:
        DamagedArchive: if a member is damaged.
    """
    archive, unpacked = _open(path), 0
    for member in members:
        series, name = _MEMBER.search(member).groups()
        target = os.path.join(image_root, series, name)
        info = archive.getinfo(member)
        if os.path.exists(target) and os.path.getsize(target) == info.file_size:
            continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            content = archive.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise DamagedArchive(f"{path}: {member} is damaged ({error}). Download the zip file again.") from error
        part = f"{target}.{os.getpid()}.part"
        with open(part, "wb") as f:
            f.write(content)
        os.replace(part, target)
        unpacked += 1
    return unpacked


def link_series(source: str, image_root: str) -> None:
    """Make ``image_root/SERIES`` lead to a folder elsewhere.

    Raises:
        FileExistsError: if there is another folder of this name.
    """
    target = os.path.join(image_root, os.path.basename(source))
    if os.path.realpath(target) == os.path.realpath(source):
        return
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists and is not {source}. Remove one of them.")
    os.symlink(os.path.abspath(source), target)


@functools.lru_cache(maxsize=2)
def _open(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DamagedArchive(f"{path}: expected a complete zip file ({error}). Download it again.") from error
