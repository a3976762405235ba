"""A path -> the CT volumes in it, whatever the format."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .dicom import list_series, read_dicom
from .nifti import NiftiFile, nifti_name
from .png_series import PngFolder
from .search import read_results, search
from .volume import UnreadableVolume, Volume

NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Source:
    """A volume that can be read, or the reason why not.

    Attributes:
        path: of the file or folder, for :func:`read_volume`.
        kind: "DICOM", "NIfTI" or "PNG".
        uid: of a DICOM series; else "".
        name: description of the series, or name of the file or folder.
        slices: how many.
        size: (rows, columns); (0, 0) where it is not known yet.
        spacing: mm between columns, rows and slices; None where it is not known.
        orientation: in words.
        problem: why it cannot be read; "" if nothing speaks against it.
        read: reads it.
    """

    path: str
    kind: str
    uid: str
    name: str
    slices: int
    size: tuple[int, int]
    spacing: tuple[float, float, float] | None
    orientation: str
    problem: str
    read: Callable[[], Volume]


def list_volumes(path: str, spacing: Sequence[float] | None = None, deep: bool = True) -> list[Source]:
    """List the volumes in a file or, at any depth, in a folder: DICOM series, NIfTI files, folders of 16-bit PNG.

    Args:
        path: of the file or folder.
        spacing: mm between columns, rows and slices, of PNG, which do not say it; see :class:`.PngFolder`.
        deep: False looks into no folder within a folder.

    Returns:
        those that can be read and those that cannot; DICOM series first.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ImportError: if pydicom or nibabel is not installed.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder")
    if os.path.isfile(path) and path.lower().endswith(NIFTI):
        return [_nifti(path)]
    sources = [_dicom(series) for series in list_series(path, deep)]
    for folder, names in search(path, deep):
        sources += [_nifti(os.path.join(folder, name)) for name in names if name.lower().endswith(NIFTI)]
        pngs = PngFolder(folder, spacing)
        if pngs.series.numbers:
            sources.append(_png(pngs))
    return sources


def read_volume(path: str, series: str | None = None, spacing: Sequence[float] | None = None) -> Volume:
    """Read a CT volume: .nii, .nii.gz, a DICOM file, or a folder with one of these or with slices as 16-bit PNG.

    Args:
        path, spacing: see :func:`list_volumes`.
        series: of several, the one whose UID or name this is; None is the only one that can be read.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        UnreadableVolume: if there is no CT volume that can be used, or there are several and ``series`` names none.
        ImportError: if pydicom or nibabel is not installed.
    """
    chosen = choose(path, list_volumes(path, spacing), series)
    if len(chosen) > 1:
        raise UnreadableVolume(
            f"{path}: expected one volume, or the UID or name of one as series, got {len(chosen)} of these:\n"
            f"{_lines(chosen)}"
        )
    return chosen[0].read()


def choose(path: str, sources: Sequence[Source], series: str | None = None) -> list[Source]:
    """Those that can be read or, of these, the one with the UID or name ``series``.

    Raises:
        UnreadableVolume: if there is none; the message says why.
    """
    named = [one for one in sources if series is None or series in (one.uid, one.name)]
    if usable := [one for one in named if not one.problem]:
        return usable
    if not sources:
        got = "a folder of results" if read_results(path) is not None else "no such file"
        raise UnreadableVolume(f"{path}: expected a CT as DICOM, NIfTI or 16-bit PNG, got {got}")
    wanted = "a CT volume that can be used" if series is None else f"a CT volume with the UID or name {series!r}"
    if series is not None and not named:
        raise UnreadableVolume(f"{path}: expected {wanted}, got these:\n{_lines(sources)}")
    problems = Counter(one.problem for one in named)
    if len(problems) == 1:
        raise UnreadableVolume(f"{path}: {next(iter(problems))}")
    counts = "; ".join(f"{count} x {problem}" for problem, count in problems.most_common())
    raise UnreadableVolume(f"{path}: expected {wanted}, got none in {len(named)} series ({counts})")


def _lines(sources: Sequence[Source]) -> str:
    return "\n".join(f"  {one.uid or one.kind}, {one.name}: {one.problem or 'can be used'}" for one in sources)


def _dicom(series) -> Source:
    rows, columns = series.pixel
    interval = series.interval()
    spacing = None if interval is None else (columns, rows, interval)
    facts = series.uid, series.name, len(series.slices), series.size, spacing, series.orientation, series.problem
    return Source(series.path, "DICOM", *facts, lambda: read_dicom(series))


def _nifti(path: str) -> Source:
    try:
        file = NiftiFile(path)
    except UnreadableVolume as error:
        problem = str(error).removeprefix(f"{path}: ")
        facts = "NIfTI", "", nifti_name(path), 0, (0, 0), None, "unknown", problem
        return Source(path, *facts, lambda: NiftiFile(path).read())
    columns, rows, slices = file.shape
    return Source(path, "NIfTI", "", file.name, slices, (rows, columns), file.spacing, "axial", "", file.read)


def _png(folder: PngFolder) -> Source:
    spacing, problem = None, ""
    try:
        spacing = folder.spacing()
    except (UnreadableVolume, ValueError) as error:
        problem = str(error).removeprefix(f"{folder.folder}: ")
    slices = len(folder.series.numbers)
    if slices < 2:
        problem = f"expected several slices, got {slices}"
    return Source(folder.folder, "PNG", "", folder.name, slices, (0, 0), spacing, "axial", problem, folder.read)
