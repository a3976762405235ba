"""Volumes of which the HU say where they were measured: however a file is stored, each voxel says its own place."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from a3d_det2.volumes import UnreadableVolume, read_volume
from a3d_det2.volumes.dicom import list_series
from a3d_det2.volumes.volume import gap_notes, usual_interval

ROWS, COLUMNS, SLICES = 40, 48, 12
PIXEL, INTERVAL = (1.5, 1.25), 2.5  # between rows, between columns; mm


def field(points: np.ndarray) -> np.ndarray:
    """HU at points, (..., 3) LPS in mm."""
    return -500 + points @ [3.0, 5.0, 7.0]


def check(volume, tolerance=1.0):
    """Every voxel has the HU of its place, and the axes are DeepLesion's."""
    rng = np.random.default_rng(0)
    depth, height, width = volume.hu.shape
    for _ in range(200):
        z, y, x = (int(rng.integers(n)) for n in (depth, height, width))
        assert abs(volume.hu[z, y, x] - field(volume.position_of(x, y, z))) < tolerance, (z, y, x)
    assert volume.affine[0, 0] > 0  # columns to the patient's left
    assert volume.affine[1, 1] > 0  # rows to the back
    assert volume.affine[2, 2] < 0  # slices from head to feet
    assert (np.diff(volume.positions) > 0).all()


def rotation(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [k for k in range(3) if k != axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


@pytest.fixture
def write(tmp_path):
    """Writes a series of DICOM slices; returns its folder."""

    def write(
        axes=((1, 0, 0), (0, 1, 0)),
        step=(0, 0, -INTERVAL),
        origin=(-20.0, -30.0, 50.0),
        count=SLICES,
        folder="ct",
        size=(ROWS, COLUMNS),
        change=lambda k, data: None,
        order=None,
    ):
        axes, step, origin = (np.array(a, dtype=float) for a in (axes, step, origin))
        series, frame = generate_uid(), generate_uid()
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        rows, columns = np.mgrid[: size[0], : size[1]]
        for k in range(count):
            corner = origin + k * step
            points = corner + columns[..., None] * PIXEL[1] * axes[0] + rows[..., None] * PIXEL[0] * axes[1]
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            data = FileDataset(None, Dataset(), file_meta=meta, preamble=b"\0" * 128)
            data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
            data.Modality, data.SeriesInstanceUID, data.FrameOfReferenceUID = "CT", series, frame
            data.SeriesDescription, data.ImageType = "thorax 2.5", ["ORIGINAL", "PRIMARY", "AXIAL"]
            data.PatientName, data.PatientID = "Nobody^Known", "12345"
            data.Rows, data.Columns, data.PixelSpacing = *size, list(PIXEL)
            data.ImageOrientationPatient = [float(v) for v in axes.ravel()]
            data.ImagePositionPatient = [float(v) for v in corner]
            data.SliceThickness = 9.0  # says something else than the positions
            data.InstanceNumber = k + 1
            data.RescaleSlope, data.RescaleIntercept = (2.0, -1024.0) if k % 2 else (1.0, -1024.0)
            stored = np.rint((field(points) + 1024) / data.RescaleSlope).astype(np.int16)
            data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
            data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
            data.PixelData = stored.tobytes()
            change(k, data)
            if data.get("PixelData") is not None:
                number = (order or range(count))[k]
                data.save_as(tmp_path / folder / f"{number:03d}.dcm")
        return tmp_path / folder

    return write


def test_head_first_and_feet_first_and_shuffled(write):
    first = read_volume(str(write()))
    check(first, tolerance=1.6)  # a slope of 2 rounds to 1 HU
    assert first.hu.shape == (SLICES, ROWS, COLUMNS)
    assert first.slice_interval == pytest.approx(INTERVAL)
    assert first.spacing == pytest.approx((PIXEL[1], PIXEL[0]))
    assert first.notes == ()
    assert len(set(first.instances)) == SLICES
    bottom = np.array([-20.0, -30.0, 50.0]) + (SLICES - 1) * np.array([0, 0, -INTERVAL])
    rng = np.random.default_rng(1)
    other = read_volume(
        str(write(step=(0, 0, INTERVAL), origin=bottom, folder="up", order=list(rng.permutation(SLICES))))
    )
    check(other, tolerance=1.6)
    np.testing.assert_allclose(other.affine, first.affine, atol=1e-6)
    assert np.abs(other.hu.astype(int) - first.hu).max() <= 2


@pytest.mark.parametrize("axes", [((-1, 0, 0), (0, -1, 0)), ((0, 1, 0), (1, 0, 0)), ((0, -1, 0), (1, 0, 0))])
def test_stored_any_way_in_plane(write, axes):
    volume = read_volume(str(write(axes=axes)))
    check(volume, tolerance=1.6)
    transposed = axes[0][0] == 0
    assert volume.hu.shape[1:] == ((COLUMNS, ROWS) if transposed else (ROWS, COLUMNS))


def test_oblique_by_5_degrees(write):
    matrix = rotation(5, 0) @ rotation(-3, 1)
    axes = (matrix @ [1, 0, 0], matrix @ [0, 1, 0])
    volume = read_volume(str(write(axes=axes, step=matrix @ [0, 0, -INTERVAL])))
    check(volume, tolerance=1.6)
    assert volume.slice_interval == pytest.approx(INTERVAL)
    assert volume.notes == ()


def test_a_tilted_gantry(write):
    matrix = rotation(12, 0)
    axes = (matrix @ [1, 0, 0], matrix @ [0, 1, 0])
    volume = read_volume(str(write(axes=axes)))  # the table moves along the body, the slices are tilted
    check(volume, tolerance=1.6)
    assert volume.slice_interval == pytest.approx(INTERVAL * np.cos(np.radians(12)), rel=1e-6)
    assert "tilted by 12.0 degrees" in volume.notes[0]
    assert abs(volume.offsets[-1, 1]) == pytest.approx((SLICES - 1) * INTERVAL * np.sin(np.radians(12)), rel=1e-6)


def remove(*numbers):
    def change(k, data):
        if k in numbers:
            data.PixelData = None

    return change


def test_a_missing_slice_is_named_and_moves_nothing(write):
    volume = read_volume(str(write(change=remove(5))))
    check(volume, tolerance=1.6)
    assert len(volume.hu) == SLICES - 1
    assert volume.slice_interval == pytest.approx(INTERVAL)
    assert volume.notes == ("5.00 mm between slices, 10.0 mm from the first; elsewhere it is 2.50 mm.",)


def test_a_position_given_twice_and_a_localiser(write):
    write(count=3)

    def scout(k, data):
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        data.Rows, data.Columns = 64, 64
        data.PixelData = np.zeros((64, 64), np.int16).tobytes()

    folder = write(change=lambda k, data: setattr(data, "SeriesDescription", "axial"))
    for path in sorted(folder.glob("*.dcm"))[:1]:
        again = pydicom.dcmread(path)
        again.SOPInstanceUID = generate_uid()
        again.save_as(folder / "again.dcm")
    for path in write(count=1, folder="scout", change=scout).glob("*.dcm"):
        path.rename(folder / "scout.dcm")
    (folder / "report.txt").write_text("nothing")
    volume = read_volume(str(folder))
    check(volume, tolerance=1.6)
    assert len(volume.hu) == SLICES
    assert volume.notes == (f"1 of {SLICES + 1} slices lie where another does; the first is taken.",)
    problems = [one.problem for one in list_series(str(folder))]
    assert problems == ["", "it is a localiser"]


def test_series_without_a_uid_are_told_apart(write):
    """Those of two folders, and in one folder those of two patients."""
    blank = {"SeriesInstanceUID": "", "StudyInstanceUID": ""}
    write(folder="all/a", change=set_tag(**blank))
    write(folder="all/b", change=set_tag(**blank, PatientID="other"), origin=(-20.0, -30.0, 51.0))
    folder = write(folder="all/a", change=set_tag(**blank, PatientID="third"), order=list(range(100, 100 + SLICES)))
    found = list_series(str(folder.parent))
    assert [len(one.slices) for one in found] == [SLICES] * 3


def test_two_pixel_sizes_are_two_volumes(write):
    folder = write(change=lambda k, data: setattr(data, "PixelSpacing", [1.5, 1.25] if k < 6 else [3, 3]))
    found = list_series(str(folder))
    assert sorted(one.pixel for one in found) == [(1.5, 1.25), (3.0, 3.0)]


def test_tags_that_cannot_be_read_are_named_and_the_rest_is_read(write):
    folder = write()
    path = folder / "odd.dcm"
    content = next(folder.glob("*.dcm")).read_bytes()
    at = content.index(b"\x28\x00\x10\x00US")  # Rows, whose two bytes become one
    path.write_bytes(content[: at + 6] + b"\x01\x00" + content[at + 8 : at + 9] + content[at + 10 :])
    found = list_series(str(folder))
    assert found[0].problem == ""
    assert len(read_volume(str(folder)).hu) == SLICES
    assert all("odd.dcm" in one.problem or not one.problem for one in found)


@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleSlope": None},
        {"RescaleIntercept": None},
        {"PixelPaddingValue": [1, 2]},
    ],
)
def test_odd_values_are_named(write, tags):
    with pytest.raises(UnreadableVolume, match=r"0\d\d.dcm: expected HU, got a slice without"):
        read_volume(str(write(change=set_tag(**tags))))


def test_positions_rounded_by_the_scanner_are_no_gaps(write):
    step = 0.625

    def rounded(k, data):
        data.ImagePositionPatient = [-20, -30, round(50 - k * step, 1)]

    volume = read_volume(str(write(count=40, change=rounded)))
    assert volume.notes == ()
    assert volume.slice_interval == pytest.approx(step, abs=0.005)


def test_intervals_that_are_all_different():
    positions = np.array([0.0, 2.0, 6.0])
    assert usual_interval(positions) == 3
    assert len(gap_notes(positions)) == 2


def test_many_gaps_are_counted(write):
    volume = read_volume(str(write(count=40, change=remove(*range(3, 40, 5)))))
    assert len(volume.notes) == 4
    assert volume.notes[-1] == "There are 5 more such gaps."


def test_a_pipe_in_the_folder_is_not_waited_for(write):
    folder = write()
    os.mkfifo(folder / "pipe")
    assert len(read_volume(str(folder)).hu) == SLICES


def test_padding_is_air(write):
    def pad(k, data):
        stored = np.frombuffer(data.PixelData, np.int16).reshape(ROWS, COLUMNS).copy()
        stored[:4] = -2000
        data.PixelData, data.PixelPaddingValue = stored.tobytes(), -2000

    volume = read_volume(str(write(change=pad)))
    assert (volume.hu[:, :4] == -1024).all()
    assert (volume.hu[:, 4:] > -1024).all()


def set_tag(**tags):
    return lambda k, data: [setattr(data, name, value) for name, value in tags.items()]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"change": set_tag(Modality="MR")}, "expected a CT, got the modality MR"),
        ({"axes": ((1, 0, 0), (0, 0, -1)), "step": (0, 2, 0)}, "expected axial slices, got some 90 degrees from them"),
        ({"count": 1}, "expected several slices, got 1"),
        ({"size": (16, 16)}, "expected slices of at least 32 x 32 pixels, got 16 x 16"),
        ({"change": set_tag(ImagePositionPatient=None)}, "it has no geometry"),
        ({"change": set_tag(PixelSpacing=[0, 0])}, "it has no geometry"),
        ({"change": set_tag(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])}, "it has no geometry"),
    ],
)
def test_series_that_cannot_be_used(write, how, message):
    with pytest.raises(UnreadableVolume, match=message):
        read_volume(str(write(**how)))


def test_damaged_slices_are_named(write):
    folder = write(change=set_tag(PixelData=b"\0" * 100))
    with pytest.raises(UnreadableVolume, match=r"0\d\d.dcm: the slice cannot be read"):
        read_volume(str(folder))
    slopes = write(folder="no_slope", change=lambda k, data: delattr(data, "RescaleSlope"))
    with pytest.raises(UnreadableVolume, match="without a rescale slope"):
        read_volume(str(slopes))


def test_nothing_there_and_several_series(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no such file or folder"):
        read_volume(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableVolume, match="expected a CT as DICOM, NIfTI or 16-bit PNG, got no such file"):
        read_volume(str(tmp_path / "empty"))
    write(folder="both")
    folder = write(folder="both", order=list(range(100, 100 + SLICES)), change=set_tag(SeriesDescription="second"))
    with pytest.raises(
        UnreadableVolume,
        match=r"expected one volume, or the UID or name of one as series, got 2 of these:(.|\n)*second: can be used",
    ):
        read_volume(str(folder))
    check(read_volume(str(folder), "second"), tolerance=1.6)


def test_one_file_of_many_frames(write, tmp_path):
    """An enhanced CT: geometry and rescaling of each frame, which are in no order."""
    files = [pydicom.dcmread(path) for path in sorted(write().glob("*.dcm"))]
    files = [files[i] for i in np.random.default_rng(2).permutation(len(files))]
    one = files[0]
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    one.NumberOfFrames = len(files)
    one.PixelData = b"".join(file.PixelData for file in files)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = one.PixelSpacing
    orientation.ImageOrientationPatient = one.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    one.SharedFunctionalGroupsSequence, frames = [shared], []
    for file in files:
        frame, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = file.ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept = file.RescaleSlope, file.RescaleIntercept
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [values]
        frames.append(frame)
    one.PerFrameFunctionalGroupsSequence = frames
    for name in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope", "RescaleIntercept"):
        delattr(one, name)
    one.save_as(tmp_path / "enhanced.dcm")
    volume = read_volume(str(tmp_path / "enhanced.dcm"))
    check(volume, tolerance=1.6)
    assert volume.hu.shape == (SLICES, ROWS, COLUMNS)


@pytest.mark.parametrize("path", sorted(Path(pydicom.__file__).parent.rglob("*.dcm")), ids=lambda path: path.name)
def test_files_that_come_with_pydicom(path):
    """No one here wrote them: each is read, or refused with a sentence."""
    try:
        volume = read_volume(str(path))
    except UnreadableVolume as error:
        assert str(error).startswith(str(path))  # noqa: PT017
        assert len(str(error)) > len(str(path)) + 10  # noqa: PT017
        return
    assert volume.hu.ndim == 3


def test_a_folder_of_all_that_comes_with_pydicom():
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    found = list_series(str(folder))
    assert len(found) > 20
    usable = [one for one in found if not one.problem]
    for one in usable:
        try:
            assert read_volume(str(folder), one.uid).hu.ndim == 3
        except UnreadableVolume as error:
            assert len(str(error)) > 40  # noqa: PT017
    assert all(one.problem for one in found if one.size == (16, 16))
    with pytest.raises(UnreadableVolume, match=r"got none in \d+ series \(\d+ x expected a CT, got"):
        read_volume(str(folder))


CODES = ["RAS", "LPS", "LAS", "LPI", "PIR", "SAL"]


def nifti(codes, dtype=np.int16, endian="<", slope=None):
    """An image whose axes point as the codes say."""
    directions = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    lengths = {"R": 1.25, "L": 1.25, "A": 1.5, "P": 1.5, "S": INTERVAL, "I": INTERVAL}
    counts = {"R": COLUMNS, "L": COLUMNS, "A": ROWS, "P": ROWS, "S": SLICES, "I": SLICES}
    shape = tuple(counts[c] for c in codes)
    affine = np.eye(4)
    affine[:3, :3] = np.array([np.array(directions[c]) * lengths[c] for c in codes]).T
    affine[:3, 3] = (7, -5, 30)
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    ras = indices @ affine[:3, :3].T + affine[:3, 3]
    hu = field(ras * [-1, -1, 1])
    header = nibabel.Nifti1Header(endianness=endian)
    header.set_data_dtype(dtype)
    stored = (hu + 600) / slope if slope else hu
    stored = stored if dtype == np.float32 else np.rint(stored).astype(dtype)
    image = nibabel.Nifti1Image(stored, affine, header)
    image.header.set_data_dtype(dtype)
    if slope:
        image.header.set_slope_inter(slope, -600)
    image.set_sform(affine, 1)
    return image


@pytest.mark.parametrize("codes", CODES)
def test_nifti_stored_any_way(tmp_path, codes):
    nibabel.save(nifti(codes), tmp_path / "case.nii.gz")
    volume = read_volume(str(tmp_path / "case.nii.gz"))
    check(volume)
    assert volume.hu.shape == (SLICES, ROWS, COLUMNS)
    assert (volume.slice_interval, volume.spacing) == (pytest.approx(INTERVAL), pytest.approx((1.25, 1.5)))
    assert (volume.name, volume.notes) == ("case", ())


@pytest.mark.parametrize("how", [{"endian": ">"}, {"dtype": np.float32}, {"slope": 0.5}])
def test_nifti_of_other_types(tmp_path, how):
    nibabel.save(nifti("RAS", **how), tmp_path / "case.nii")
    check(read_volume(str(tmp_path / "case.nii")))


def test_nifti_that_cannot_be_used(tmp_path):
    path = tmp_path / "case.nii"

    def expect(message):
        with pytest.raises(UnreadableVolume, match=message):
            read_volume(str(path))

    path.write_bytes(b"no image")
    expect("case.nii: expected a NIfTI file, got an unreadable one")
    affine = np.diag([1.0, 1, 2, 1])
    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 40, 5, 3), np.int16), affine), path)
    expect(r"expected a volume of three dimensions, got \(40, 40, 5, 3\)")
    values = np.zeros((40, 40, 5), np.float32)
    values[1, 2, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    expect("case.nii: expected HU, got values that are no finite numbers")
    image = nibabel.Nifti1Image(np.zeros((40, 40, 5), np.int16), affine)
    image.header["qform_code"] = image.header["sform_code"] = 0
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, path)
    expect("expected a geometry, got qform_code and sform_code 0")
    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 40, 1), np.int16), affine), path)
    expect("expected several slices, got 1")
    nibabel.save(nibabel.Nifti1Image(np.zeros((16, 16, 9), np.int16), affine), path)
    expect("at least 32 x 32 pixels, got 16 x 16")
    nibabel.save(nifti("RAS"), tmp_path / "whole.nii.gz")
    content = (tmp_path / "whole.nii.gz").read_bytes()
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(content[: len(content) // 2])
    expect("cut.nii.gz: expected a complete NIfTI file, got a damaged one")
    path.write_bytes(gzip.compress(b"x" * 1000))
    expect("cut.nii.gz: expected a NIfTI file, got an unreadable one")
