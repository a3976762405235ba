"""Series of DICOM slices, sorted by where they lie in the patient and not by what their names and numbers say."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .origin import Origin
from .search import search
from .volume import AIR, UnreadableVolume, Volume, gap_notes, oblique_problem, size_problem, to_int16, usual_interval

TAGS = (
    "Modality SOPClassUID SOPInstanceUID SeriesInstanceUID SeriesDescription ImageType Rows Columns PixelSpacing "
    "ImageOrientationPatient ImagePositionPatient StudyInstanceUID PatientID SeriesNumber "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
).split()
IDENTIFIERS = (
    "PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID StudyInstanceUID "
    "StudyDescription AccessionNumber ReferringPhysicianName SeriesInstanceUID SeriesDescription"
).split()
OTHER_ATTRIBUTES = (
    "FrameOfReferenceUID LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod"
).split()
JPEG = "1.2.840.10008.1.2.4."  # the beginning of the UIDs of such transfer syntaxes
DECODERS = (  # by how they go on; packages of the extra [volumes], none of them under the GPL
    ("9", "pylibjpeg-openjpeg"),  # JPEG 2000
    ("20", "pylibjpeg-openjpeg"),  # High-Throughput JPEG 2000
    ("", "python-gdcm"),  # JPEG, lossless JPEG, JPEG-LS
)
SAME_DIRECTION = 0.005  # by which the cosines of one orientation may differ; 0.3 degrees
DOUBLE = 0.01  # mm; positions closer than this are one


@dataclass
class Slice:
    """One image: where it lies, the file and frame that has it, and the UIDs of the file and of its kind."""

    path: str
    frame: int | None
    position: np.ndarray
    instance: str
    sop_class: str


@dataclass(eq=False)
class Series:
    """Slices of one series, orientation and size.

    Attributes:
        path: of the folder or file that was looked into.
        uid, description: of the series.
        size: (rows, columns).
        pixel: distance between rows and between columns in mm.
        directions: (2, 3), that of increasing column and of increasing row.
        slices: as found.
        problem: why it cannot be used; "" if it can.
    """

    path: str
    uid: str
    description: str
    size: tuple[int, int]
    pixel: tuple[float, float]
    directions: np.ndarray
    slices: list[Slice] = field(default_factory=list)
    problem: str = ""

    @property
    def normal(self) -> np.ndarray:
        """The unit normal of the slices, towards the feet."""
        normal = np.cross(*self.directions)
        normal = normal / np.linalg.norm(normal)
        return normal if normal[2] < 0 else -normal

    @property
    def orientation(self) -> str:
        """Of the slices, in words."""
        if not self.slices:
            return "unknown"
        names = ("sagittal", "coronal", "axial")
        angle = self.angle_to(int(np.abs(self.normal).argmax()))
        return names[int(np.abs(self.normal).argmax())] + (f", {angle:.0f} degrees oblique" if angle >= 0.5 else "")

    def angle_to(self, axis: int) -> float:
        """Degrees between the normal and an axis of the patient."""
        return float(np.degrees(np.arccos(np.clip(abs(self.normal[axis]), 0, 1))))

    def is_parallel(self, other: "Series") -> bool:
        return bool(np.abs(self.directions - other.directions).max() < SAME_DIRECTION)

    def is_like(self, other: "Series") -> bool:
        """Whether its slices may be of one volume with those of another one of this series and size."""
        return self.is_parallel(other) and np.allclose(self.pixel, other.pixel, rtol=1e-3)

    def order(self) -> tuple[np.ndarray, np.ndarray]:
        """The slices from head to feet, each place once, by their numbers, and mm along the normal of each."""
        along = np.array([one.position @ self.normal for one in self.slices])
        chosen: list[int] = []
        for i in np.argsort(along, kind="stable").tolist():
            if not chosen or along[i] - along[chosen[-1]] >= DOUBLE:
                chosen.append(i)
        return np.array(chosen, dtype=int), along[chosen]

    def interval(self) -> float | None:
        """mm between slices, see :attr:`.Volume.slice_interval`; None where there are not two."""
        places = self.order()[1] if self.slices else ()
        return usual_interval(places) if len(places) > 1 else None

    @property
    def name(self) -> str:
        return self.description or os.path.basename(os.path.normpath(self.path))


def list_series(path: str, deep: bool = True) -> list[Series]:
    """Find the series in a DICOM file or in a folder, if ``deep`` at any depth. Files that are no DICOM are left out.

    Returns:
        a Series for each series, orientation and size, the largest first; those that cannot be used say why.
    """
    import pydicom

    groups: dict[tuple, list[Series]] = {}
    for file in _files(path, deep):
        try:
            tags = pydicom.dcmread(file, specific_tags=TAGS, stop_before_pixels=True)
        except Exception:  # pydicom says nowhere what it raises for a file that is none
            continue
        try:
            images = list(_images(file, tags, path))
            # Without a UID, what lies together and calls itself alike belongs together.
            names = tags.get("StudyInstanceUID"), tags.get("PatientID"), tags.get("SeriesNumber")
            origin = images[0].uid or (os.path.dirname(file), *map(str, names))
        except Exception as error:  # tags are read when they are looked at
            problem = f"{os.path.basename(file)}: its tags cannot be read ({error})"
            images, origin = [Series(path, "", "", (0, 0), (1.0, 1.0), np.eye(3)[:2], [], problem)], file
        for image in images:
            group = groups.setdefault((origin, image.size, image.problem), [])
            for one in group:
                if one.is_like(image):
                    one.slices += image.slices
                    break
            else:
                group.append(image)
    series = sorted((one for group in groups.values() for one in group), key=lambda one: -len(one.slices))
    usable = [one for one in series if not one.problem]
    for one in usable:
        one.problem = _mixed(one, usable) or _problem(one)
    return series


def _mixed(series: Series, others: Sequence[Series]) -> str:
    """Whether images of one series lie in several orientations: who knows what belongs together. A single one, such as
    a localiser that is not called one, is left out."""
    same = [one for one in others if one.uid == series.uid != "" and len(one.slices) > 1]
    directions = [one for one in same if not one.is_parallel(series)]
    return "expected slices of one orientation in a series, got several" if series in same and directions else ""


def _files(path: str, deep: bool) -> Iterator[str]:
    if os.path.isfile(path):
        yield path
        return
    for folder, names in search(path, deep):
        for name in names:
            if os.path.isfile(file := os.path.join(folder, name)):  # and no pipe, which would be waited for
                yield file


def _images(file: str, tags, path: str) -> Iterator[Series]:
    """One Series of a single slice for each image of a file."""
    uid, description = str(tags.get("SeriesInstanceUID", "")).strip(), str(tags.get("SeriesDescription", "")).strip()
    size = _whole(tags.get("Rows")), _whole(tags.get("Columns"))
    problem = ""
    if tags.get("Modality") != "CT":
        problem = f"expected a CT, got the modality {tags.get('Modality') or 'none'}"
    elif "LOCALIZER" in [str(kind).upper() for kind in tags.get("ImageType") or ()]:
        problem = "it is a localiser"
    elif "Secondary Capture" in getattr(tags.get("SOPClassUID"), "name", ""):
        problem = "it is a secondary capture, a picture of a screen"
    frames = tags.get("PerFrameFunctionalGroupsSequence") or [None]
    shared = (tags.get("SharedFunctionalGroupsSequence") or [None])[0]
    for number, frame in enumerate(frames):
        geometry = _geometry(tags, shared, frame)
        if geometry is None:
            yield Series(path, uid, description, size, (1.0, 1.0), np.eye(3)[:2], [], problem or "it has no geometry")
            continue
        directions, position, pixel = geometry
        uids = str(tags.get("SOPInstanceUID") or ""), str(tags.get("SOPClassUID") or "")
        place = Slice(file, number if frame is not None else None, position, *uids)
        yield Series(path, uid, description, size, pixel, directions, [place], problem)


def _texts(tags, names: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names and values of those attributes that there are. What is neither text nor a number is left out."""
    from pydicom.valuerep import PersonName

    for name in names:
        value = tags.get(name)
        several = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
        if all(isinstance(one, (str, int, float, PersonName)) for one in several):
            texts = tuple(text for one in several if (text := str(one).strip()))
            if texts:
                yield name, texts


def _whole(value) -> int:
    """A tag as a number; 0 where there is none."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def _geometry(tags, shared, frame) -> tuple[np.ndarray, np.ndarray, tuple[float, float]] | None:
    """Directions (2, 3), position (3,) and pixel size; of a multi-frame image those of the frame."""

    def find(sequence: str, name: str):
        for group in (frame, shared):
            if group is not None and sequence in group:
                return group[sequence][0].get(name)
        return tags.get(name)

    orientation = find("PlaneOrientationSequence", "ImageOrientationPatient")
    position = find("PlanePositionSequence", "ImagePositionPatient")
    pixel = find("PixelMeasuresSequence", "PixelSpacing")
    try:
        directions = np.array([float(v) for v in orientation]).reshape(2, 3)
        position = np.array([float(v) for v in position]).reshape(3)
        rows, columns = (float(v) for v in pixel)
    except (TypeError, ValueError):
        return None
    lengths = np.linalg.norm(directions, axis=1)
    if not np.isfinite([*directions.ravel(), *position, rows, columns]).all():
        return None
    if not (np.abs(lengths - 1) < 0.01).all() or abs(directions[0] @ directions[1]) > 0.01 or min(rows, columns) <= 0:
        return None
    return directions, position, (rows, columns)


def _problem(series: Series) -> str:
    return oblique_problem(series.angle_to(2)) or size_problem(*series.size, len(series.slices), series.pixel[::-1])


def read_dicom(series: Series) -> Volume:
    """Read the slices of a series.

    Raises:
        UnreadableVolume: if it cannot be used, or a slice is damaged or compressed in a way that nothing installed
            decodes; the message names the file.
    """
    if series.problem:
        raise UnreadableVolume(f"{series.path}, {series.name}: {series.problem}")
    slices, notes = _in_order(series)
    positions = np.array([one.position for one in slices])
    along = (positions - positions[0]) @ series.normal
    rows, columns = series.pixel
    # Which of our axes, columns and rows, the ones on disk are nearest to.
    transposed = abs(series.directions[0][0]) < abs(series.directions[0][1])
    axes = series.directions[::-1] if transposed else series.directions
    lengths = np.array([rows, columns] if transposed else [columns, rows])
    counts = np.array(series.size if transposed else series.size[::-1])  # of columns and rows, as ours
    flips = np.array([axes[0][0] < 0, axes[1][1] < 0])
    steps = axes * lengths[:, None]
    origin = positions[0] + ((counts - 1) * flips) @ steps
    steps = np.where(flips[:, None], -steps, steps)
    units = steps / lengths[:, None]
    drift = positions - positions[0] - along[:, None] * series.normal
    offsets = drift @ units.T
    if np.abs(offsets).max() > 0.01 * np.abs(along).max() + 0.1:
        tilt = np.degrees(np.arctan2(np.linalg.norm(offsets[-1]), along[-1]))
        notes.append(f"The gantry was tilted by {tilt:.1f} degrees: slices are shifted against each other.")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 3] = steps[0], steps[1], origin
    affine[:3, 2] = series.normal * (along[-1] / max(len(along) - 1, 1))
    hu = np.empty((len(slices), counts[1], counts[0]), dtype=np.int16)
    read = _Reader()
    for out, one in zip(hu, slices, strict=True):
        image = read(one)
        if image.shape != series.size:
            raise UnreadableVolume(f"{one.path}: expected {series.size} pixels, got {image.shape}")
        image = image.T if transposed else image
        out[:] = image[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
    classes = {one.sop_class for one in slices}
    origin = Origin(
        sop_class=classes.pop() if len(classes) == 1 else "",
        series=series.uid,
        instances=tuple(one.instance for one in slices),
        frames=None if slices[0].frame is None else tuple(one.frame for one in slices),
        size=series.size,
        pixel=series.pixel,
        directions=series.directions,
        positions=positions,
        attributes=read.attributes,
    )
    return Volume(
        hu,
        affine,
        along,
        offsets,
        series.name,
        tuple(notes),
        stored_axes=(1, 0, 2) if transposed else (0, 1, 2),
        stored_flips=(*(flips[::-1] if transposed else flips).tolist(), False),
        identifiers={name: "\\".join(read.attributes[name][0]) for name in IDENTIFIERS if name in read.attributes},
        origin=origin,
    )


def _in_order(series: Series) -> tuple[list[Slice], list[str]]:
    """The slices from head to feet, each position once, and what was odd."""
    order, places = series.order()
    doubles, notes = len(series.slices) - len(order), []
    if doubles:
        notes.append(f"{doubles} of {len(series.slices)} slices lie where another does; the first is taken.")
    if len(places) < 2:
        raise UnreadableVolume(f"{series.path}, {series.name}: expected several slices, got all of them in one place")
    slices = [series.slices[i] for i in order]
    notes += gap_notes(places)
    return slices, notes


class _Reader:
    """Reads slices in HU; a file of many frames is decoded once.

    Attributes:
        attributes: what the files say of patient, study and series, each value that differs from those before it.
    """

    def __init__(self):
        self._last: tuple[str, np.ndarray, object] | None = None
        self.attributes: dict[str, list[tuple[str, ...]]] = {}

    def __call__(self, one: Slice) -> np.ndarray:
        """(H, W) int16."""
        if self._last is None or self._last[0] != one.path:
            self._last = (one.path, *self._decode(one.path))
            for name, values in _texts(self._last[2], (*IDENTIFIERS, *OTHER_ATTRIBUTES)):
                known = self.attributes.setdefault(name, [])
                if values not in known:
                    known.append(values)
        _, pixels, tags = self._last
        try:
            return self._hu(pixels, tags, one)
        except UnreadableVolume:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of odd tags
            raise UnreadableVolume(f"{one.path}: expected HU, got a slice without them ({error})") from error

    def _hu(self, pixels: np.ndarray, tags, one: Slice) -> np.ndarray:
        stored = pixels if one.frame is None or pixels.ndim == 2 else pixels[one.frame]
        slope, intercept = self._rescale(tags, one)
        hu = to_int16(stored * slope + intercept)
        padding = tags.get("PixelPaddingValue")
        if padding is not None:
            limit = tags.get("PixelPaddingRangeLimit", padding)
            low, high = sorted((int(padding), int(limit)))
            hu[(stored >= low) & (stored <= high)] = AIR
        return hu

    def _decode(self, path: str) -> tuple[np.ndarray, object]:
        import pydicom

        try:
            tags = pydicom.dcmread(path)
        except Exception as error:  # pydicom says nowhere what it raises for a damaged file
            raise UnreadableVolume(f"{path}: the slice cannot be read ({error})") from error
        try:
            return tags.pixel_array, tags
        except Exception as error:  # of whichever decoder it found
            syntax = tags.file_meta.get("TransferSyntaxUID")
            how = f"; it is stored as {syntax.name}" if syntax else ""
            if decoders := next((names for end, names in DECODERS if str(syntax).startswith(JPEG + end)), ""):
                how += f", which the package {decoders} decodes"
            why = str(error).partition("\n")[0]
            raise UnreadableVolume(f"{path}: the slice cannot be read ({why}{how})") from error

    def _rescale(self, tags, one: Slice) -> tuple[float, float]:
        groups = [tags]
        if one.frame is not None:
            shared = tags.get("SharedFunctionalGroupsSequence") or []
            for group in (tags.PerFrameFunctionalGroupsSequence[one.frame], *shared):
                if "PixelValueTransformationSequence" in group:
                    groups.insert(0, group.PixelValueTransformationSequence[0])
                    break
        for group in groups:
            if "RescaleSlope" in group:
                return float(group.RescaleSlope), float(group.get("RescaleIntercept", 0))
        raise UnreadableVolume(f"{one.path}: expected HU, got a slice without a rescale slope")
