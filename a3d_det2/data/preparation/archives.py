"""Bring a downloaded DeepLesion, zip files or folders, into Images_png/SERIES/NNN.png."""

import functools
import os
import re
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from ...files import replacing

LARGEST_SLICE = 1 << 27  # bytes; those of DeepLesion have less than 1 << 20
_MEMBER = re.compile(r"(?:^|/)(\d+_\d+_\d+)/(\d+\.png)$")
_SERIES = re.compile(r"\d+_\d+_\d+")
_KEY_SLICE = re.compile(r"(?:^|/)\d+_\d+_\d+_\d+\.png$")


class DamagedArchive(ValueError):
    """A zip file that has to be downloaded again."""


@dataclass
class Sources:
    """What lies in the downloads.

    Attributes:
        zips: the zip files.
        series: name -> folder of its slices.
        tables: the csv files.
    """

    zips: list[str] = field(default_factory=list)
    series: dict[str, str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)


def find_sources(paths: list[str]) -> Sources:
    """Look through downloads: zip files, csv files, and folders with these and folders of slices, nested in any way.

    Raises:
        FileNotFoundError: if one of ``paths`` is not there.
        ValueError: if a series lies in two folders, a file is neither zip nor csv, or the slices are those of
            Key_slices.zip.
    """
    sources, seen = Sources(), set()
    for top in paths:
        if os.path.isfile(top):
            if not top.endswith((".zip", ".csv")):
                raise ValueError(f"{top}: expected a folder, a zip file or DL_info.csv.")
            (sources.zips if top.endswith(".zip") else sources.tables).append(top)
        elif not os.path.isdir(top):
            raise FileNotFoundError(f"{top}: no such file or folder.")
        for folder, subfolders, names in os.walk(top, followlinks=True):
            if os.path.realpath(folder) in seen:  # a link that leads back
                subfolders.clear()
                continue
            seen.add(os.path.realpath(folder))
            _look_into(folder, subfolders, sorted(names), sources)
    return sources


def _look_into(folder: str, subfolders: list[str], names: list[str], sources: Sources) -> None:
    """Note what a folder holds, and take the folders of slices out of ``subfolders``."""
    subfolders.sort()
    for name in [name for name in subfolders if _SERIES.fullmatch(name)]:
        subfolders.remove(name)
        path = os.path.join(folder, name)
        other = sources.series.setdefault(name, path)
        if os.path.realpath(other) != os.path.realpath(path):
            raise ValueError(f"Series {name} lies in {other} and in {path}. Put its slices into one folder.")
    sources.zips += [os.path.join(folder, name) for name in names if name.endswith(".zip")]
    sources.tables += [os.path.join(folder, name) for name in names if name == "DL_info.csv"]
    if any(_KEY_SLICE.search(name) for name in names):
        raise _key_slices(folder)


def _key_slices(path: str) -> ValueError:
    return ValueError(
        f"{path}: expected slices as SERIES/NNN.png, got PPPPPP_SS_RR_NNN.png, as in Key_slices.zip. Those are 8 bit "
        "and windowed, and the key slices alone; download the zip files of Images_png."
    )


def series_in_zip(path: str) -> dict[str, list[tuple[str, int]]]:
    """List the members of a zip file that are slices; others are not looked at.

    Returns:
        series name -> names of the members, and their CRC-32.

    Raises:
        DamagedArchive: if it is no complete zip file.
        ValueError: if it is Key_slices.zip.
    """
    members = defaultdict(list)
    with _open(path) as archive:
        infos = archive.infolist()
    for info in infos:
        if match := _MEMBER.search(info.filename):
            members[match[1]].append((info.filename, info.CRC))
    if not members and any(_KEY_SLICE.search(info.filename) for info in infos):
        raise _key_slices(path)
    return dict(members)


def unpack_series(path: str, members: list[str], image_root: str, verify: bool = False) -> int:
    """Unpack the slices of a series that are not yet there in full length, each in one step.

    Args:
        path: of the zip file.
        members: their names, as :func:`series_in_zip` lists them.
        image_root: folder ``Images_png``.
        verify: whether to compare the checksums of those that are there.

    Returns:
        how many were unpacked.

    Raises:
        DamagedArchive: if a member is damaged, or is no slice by its size.
    """
    archive, unpacked = _opened(path, os.getpid()), 0
    for member in members:
        series, name = _MEMBER.search(member).groups()
        target = os.path.join(image_root, series, name)
        info = archive.getinfo(member)
        is_there = os.path.exists(target) and os.path.getsize(target) == info.file_size
        if is_there and not (verify and zlib.crc32(Path(target).read_bytes()) != info.CRC):
            continue
        if info.file_size > LARGEST_SLICE or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DamagedArchive(
                f"{path}: expected slices of at most {LARGEST_SLICE} bytes, stored or deflated, got {member} of "
                f"{info.file_size} bytes and compression {info.compress_type}."
            )
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            content = archive.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise DamagedArchive(f"{path}: {member} is damaged ({error}). Download the zip file again.") from error
        with replacing(target) as part, open(part, "wb") as f:
            f.write(content)
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


def _open(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:  # the latter of a later version of the format
        raise DamagedArchive(f"{path}: expected a complete zip file ({error}). Download it again.") from error


@functools.lru_cache(maxsize=2)
def _opened(path: str, process: int) -> zipfile.ZipFile:
    """Open a zip file, or give the one that is open since the last series.

    Args:
        path: of the zip file.
        process: id of this one; after a fork, two processes would share one file position.
    """
    return _open(path)
