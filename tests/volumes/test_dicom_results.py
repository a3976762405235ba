"""Lesions in DICOM, read back by highdicom, by dcmqi, and by the numbers of the files alone."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from highdicom.spatial import ImageToReferenceTransformer
from pydicom.uid import CTImageStorage

from a3d_det2.volumes import UnreadableVolume, read_volume
from a3d_det2.volumes.dicom_results import Algorithm, DicomResults, source_problem
from a3d_det2.volumes.label_map import draw_labels, stored_slices
from a3d_det2.volumes.phantom import random_volume, write_dicom, write_nifti
from a3d_det2.volumes.writing import write_labels
from tests.volumes.archive import PLUGIN
from tests.volumes.dicom_sources import KINDS, MARGIN, make_lesions, write_source

ALGORITHM = Algorithm("a3d_det2", "0.0", {"config": "a3d_7slice.yaml", "weights_sha256": "0" * 64})
LARGEST_ERROR = 0.01  # mm


class Case:
    """A source of one kind, and what was written of it."""

    def __init__(self, kind: str, folder: Path, **options):
        self.folder = folder
        write_source(folder / "ct", kind)
        self.volume = read_volume(str(folder / "ct"))
        self.lesions = make_lesions(self.volume)
        self.labels = draw_labels(self.volume, self.lesions, MARGIN)
        DicomResults(ALGORITHM, **options).write(str(folder / "dicom"), self.volume, self.lesions, self.labels)
        self.segmentation_path, self.report_path = folder / "dicom/lesions_seg.dcm", folder / "dicom/lesions_sr.dcm"
        self.segmentation = highdicom.seg.segread(self.segmentation_path)
        self.report = highdicom.sr.srread(self.report_path)

    def nifti(self):
        write_labels(str(self.folder / "lesions.nii.gz"), self.volume, self.labels)
        return nibabel.load(self.folder / "lesions.nii.gz")


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp("case"))


def frames_of(segmentation):
    """By the attributes of the file alone: (segment, (rows, columns) bool, affine from (column, row) to LPS in mm, the
    reference to the source image) of each frame."""
    bits = np.unpackbits(np.frombuffer(segmentation.PixelData, np.uint8), bitorder="little")
    size = segmentation.Rows * segmentation.Columns
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    rows, columns = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    for number, group in enumerate(segmentation.PerFrameFunctionalGroupsSequence):
        pixels = bits[number * size : (number + 1) * size].reshape(segmentation.Rows, segmentation.Columns)
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        affine = np.column_stack([directions[0] * columns, directions[1] * rows, corner])
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        identified = group if "SegmentIdentificationSequence" in group else shared  # where there is one segment alone
        yield identified.SegmentIdentificationSequence[0].ReferencedSegmentNumber, pixels.astype(bool), affine, source


def test_voxels_are_those_of_the_nifti(case):
    """Each voxel of a frame lies, in mm, at the centre of one of lesions.nii.gz with the same label; and no voxel on
    the slices of the CT is left out."""
    nifti = case.nifti()
    labels, inverse, found = np.asarray(nifti.dataobj), np.linalg.inv(nifti.affine), np.zeros(nifti.shape, np.uint16)
    for segment, pixels, affine, _ in frames_of(case.segmentation):
        rows, columns = np.nonzero(pixels)
        places = np.column_stack([columns, rows, np.ones(len(rows))]) @ affine.T * [-1, -1, 1]  # RAS
        indices = np.column_stack([places, np.ones(len(rows))]) @ inverse[:3].T
        nearest = np.rint(indices).astype(int)
        error = np.abs((indices - nearest) @ nifti.affine[:3, :3].T)
        assert error.max() < LARGEST_ERROR
        assert not found[tuple(nearest.T)].any()  # no two segments overlap
        found[tuple(nearest.T)] = segment
    expected = labels.copy()
    if len(case.volume.hu) < labels.shape[2]:  # the label map goes on over a gap
        interval = case.volume.slice_interval
        on_slice = np.rint(case.volume.positions / interval).astype(int)
        expected[:, :, np.setdiff1d(np.arange(labels.shape[2]), on_slice)] = 0
    np.testing.assert_array_equal(found, expected)
    assert set(np.unique(found)) == {0, 1, 2, 3, 4}  # the fifth lies under the first


def test_frames_refer_to_their_images(case):
    sources = {}
    for path in (case.folder / "ct").iterdir():
        tags = pydicom.dcmread(path)
        for number, group in enumerate(tags.get("PerFrameFunctionalGroupsSequence", [None]), 1):
            place = tags if group is None else group.PlanePositionSequence[0]
            key = tags.SOPInstanceUID, None if group is None else number
            sources[key] = tags.SOPClassUID, np.array(place.ImagePositionPatient, float)
    for _, _, affine, source in frames_of(case.segmentation):
        key = source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")
        sop_class, position = sources[key]
        assert source.ReferencedSOPClassUID == sop_class
        assert np.abs(position - affine[:, 2]).max() < 1e-6


def test_highdicom_reads_the_segmentation(case):
    segmentation, slices = case.segmentation, stored_slices(case.volume, case.labels)
    assert segmentation.SegmentationType == "BINARY"
    assert segmentation.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    options = {"segment_numbers": [1, 2, 3, 4], "combine_segments": True, "relabel": False}
    options["assert_missing_frames_are_empty"] = True
    if case.volume.origin.frames is None:
        read = segmentation.get_pixels_by_source_instance(list(case.volume.instances), **options)
    else:
        frames = [number + 1 for number in case.volume.origin.frames]
        read = segmentation.get_pixels_by_source_frame(case.volume.instances[0], frames, **options)
    np.testing.assert_array_equal(read, slices)
    for lesion in case.lesions:
        segment = segmentation.get_segment_description(lesion.number)
        assert segment.segment_label == segment.tracking_id == f"Lesion {lesion.number}"
        assert segment.SegmentDescription == f"Score {lesion.score:.3f}"
        identification = segment.algorithm_identification
        assert (identification.name, identification.version) == ("a3d_det2", "0.0")
        assert "weights_sha256=" + "0" * 64 in identification[0].AlgorithmParameters
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == pytest.approx(case.volume.slice_interval, abs=1e-6)


def test_the_report_says_what_was_measured(case):
    tracked = {one.number: case.segmentation.get_segment_description(one.number).tracking_uid for one in case.lesions}
    axes = case.report.content.get_image_measurement_groups()
    regions = case.report.content.get_volumetric_roi_measurement_groups()
    assert len(axes) == len(regions) == len(case.lesions) == len(set(tracked.values()))
    for lesion, group, region in zip(case.lesions, axes, regions, strict=True):
        assert group.tracking_uid == region.tracking_uid == tracked[lesion.number]
        assert group.tracking_identifier == "Cornerstone3DTools@^0.1.0:Bidirectional"
        assert region.tracking_identifier == f"Lesion {lesion.number}"
        assert group.finding_type.meaning == region.finding_type.meaning == "Lesion"
        lengths = {one.name.meaning: one for one in group.get_measurements()}
        assert list(lengths) == ["Long Axis", "Short Axis"]
        for name, millimeters, ends in (
            ("Long Axis", lesion.long_mm, lesion.long_axis),
            ("Short Axis", lesion.short_mm, lesion.short_axis),
        ):
            assert lengths[name].value == pytest.approx(millimeters, abs=LARGEST_ERROR)
            assert lengths[name].unit.value == "mm"
            (line,) = lengths[name].referenced_coordinates
            assert line.graphic_type.value == "POLYLINE"
            places = in_patient(case, line)
            truth = np.array([case.volume.position_of(*end, lesion.largest) for end in ends])
            assert np.abs(places - truth).max() < LARGEST_ERROR
            assert np.linalg.norm(places[1] - places[0]) == pytest.approx(millimeters, abs=LARGEST_ERROR)
        numbers = {one.name.meaning: (one.value, one.unit.value) for one in region.get_measurements()}
        assert numbers["Volume"] == (pytest.approx(lesion.volume_mm3, abs=1e-3), "mm3")
        assert numbers["Certainty of Finding"] == (pytest.approx(100 * lesion.score), "%")
        reference = region.referenced_segment[0].ReferencedSOPSequence[0]
        assert reference.ReferencedSegmentNumber == lesion.number
        assert reference.ReferencedSOPInstanceUID == case.segmentation.SOPInstanceUID


def in_patient(case, line) -> np.ndarray:
    """(2, 3) LPS in mm of a line, by the geometry of the image that it refers to, read from its file."""
    image = line.ContentSequence[0].ReferencedSOPSequence[0]
    path = next(p for p in (case.folder / "ct").iterdir() if _uid(p) == image.ReferencedSOPInstanceUID)
    tags = pydicom.dcmread(path)
    frame = image.get("ReferencedFrameNumber")
    assert (frame is None) == (tags.get("NumberOfFrames") is None)
    plane = place = measures = tags
    if frame is not None:
        groups = [tags.PerFrameFunctionalGroupsSequence[frame - 1], tags.SharedFunctionalGroupsSequence[0]]
        plane, place, measures = (
            next(group[name][0] for group in groups if name in group)
            for name in ("PlaneOrientationSequence", "PlanePositionSequence", "PixelMeasuresSequence")
        )
    to_patient = ImageToReferenceTransformer(
        place.ImagePositionPatient, plane.ImageOrientationPatient, measures.PixelSpacing
    )
    return to_patient(np.array(line.GraphicData, float).reshape(2, 2))


def _uid(path) -> str:
    return pydicom.dcmread(path, specific_tags=["SOPInstanceUID"], stop_before_pixels=True).SOPInstanceUID


def test_dcmqi_reads_both(case):
    """The library that 3D Slicer reads them by."""
    pytest.importorskip("dcmqi")
    reader = Path(sys.executable).parent / "segimage2itkimage"
    folder = case.folder / "dcmqi"
    folder.mkdir()
    run(reader, "--inputDICOM", case.segmentation_path, "--outputDirectory", folder, "-t", "nifti")
    reference = case.nifti()
    labels, inverse = np.asarray(reference.dataobj), np.linalg.inv(reference.affine)
    for number in (1, 2, 3, 4):
        image = nibabel.load(folder / f"{number}.nii.gz")
        found = np.argwhere(np.asarray(image.dataobj) > 0)
        assert len(found) == (case.labels == number).sum()
        if np.abs(case.volume.offsets).max() > 1e-3:
            continue  # its grid has right angles and knows no tilt
        places = found @ image.affine[:3, :3].T + image.affine[:3, 3]
        indices = places @ inverse[:3, :3].T + inverse[:3, 3]
        nearest = np.rint(indices).astype(int)
        assert np.abs((indices - nearest) @ reference.affine[:3, :3].T).max() < LARGEST_ERROR
        assert (labels[tuple(nearest.T)] == number).all()
    run(reader.with_name("tid1500reader"), "--inputDICOM", case.report_path, "--outputMetadata", folder / "sr.json")
    groups = json.loads((folder / "sr.json").read_text())["Measurements"]
    values = {}
    for group in groups:
        lesion = values.setdefault(group["TrackingUniqueIdentifier"], {})
        lesion |= {one["quantity"]["CodeMeaning"]: float(one["value"]) for one in group["measurementItems"]}
    for lesion, found in zip(case.lesions, values.values(), strict=True):
        assert found["Long Axis"] == pytest.approx(lesion.long_mm, abs=LARGEST_ERROR)
        assert found["Short Axis"] == pytest.approx(lesion.short_mm, abs=LARGEST_ERROR)
        assert found["Volume"] == pytest.approx(lesion.volume_mm3, abs=1e-3)


def run(*command) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def check():
    """Fails on what dciodvfy calls an error, and if need be on its warnings."""
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")

    def check(path, bad=("Error",)):
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
        assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(bad)] == []

    return check


def test_they_conform(case, check):
    check(case.segmentation_path, ("Error", "Warning"))
    check(case.report_path, ("Error", "Warning"))


def identity(dataset) -> dict:
    names = "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber".split()
    return {name: str(dataset[name].value or "") for name in names}


def test_they_belong_to_the_study_and_take_no_more_along(tmp_path, check):
    def change(image):
        image.PatientName, image.IssuerOfPatientID = "山田^太郎", "Hospital"
        image.SpecificCharacterSet = "ISO_IR 192"
        image.AccessionNumber, image.StudyID, image.PatientSex = "A" * 16, "S1", "F"
        image.PatientAge, image.PatientWeight, image.PatientComments = "044Y", 60, "private remark"
        image.InstitutionName, image.OperatorsName, image.StudyDescription = "private place", "Private^Name", "private"
        image.add_new(0x00091001, "LO", "private element")

    def write(folder, **options):
        case = Case("axial", folder, **options)
        for path in (folder / "ct").iterdir():
            image = pydicom.dcmread(path)
            change(image)
            image.save_as(path)
        volume = read_volume(str(folder / "ct"))
        shutil.rmtree(folder / "dicom")
        DicomResults(ALGORITHM, **options).write(str(folder / "dicom"), volume, case.lesions, case.labels)
        return image, [pydicom.dcmread(path) for path in (case.segmentation_path, case.report_path)]

    source, written = write(tmp_path / "a")
    for one in written:
        assert identity(one) == identity(source)
        assert (one.StudyInstanceUID, one.IssuerOfPatientID) == (source.StudyInstanceUID, "Hospital")
        assert one.SeriesInstanceUID != source.SeriesInstanceUID
        assert "private" not in str(one).lower()
        assert "PatientAge" not in one
    source, written = write(tmp_path / "b", pseudonymous=True)
    for one in written:
        assert set(identity(one).values()) == {""}
        assert (one.StudyInstanceUID, one.get("IssuerOfPatientID")) == (source.StudyInstanceUID, None)
        assert not any(text in str(one) for text in ("山田", "AAAA", "PHANTOM", "Hospital"))
    for folder in ("a", "b"):
        for name in ("lesions_seg.dcm", "lesions_sr.dcm"):
            check(tmp_path / folder / "dicom" / name)


def changed(folder, change):
    """A series whose images ``change`` has changed, by their number."""
    write_source(folder, "axial")
    for number, path in enumerate(sorted(folder.iterdir())):
        image = pydicom.dcmread(path)
        change(number, image)
        image.save_as(path)
    return read_volume(str(folder))


def written(volume, folder, **options):
    """Segmentation and report of a volume."""
    lesions = make_lesions(volume)
    DicomResults(ALGORITHM, **options).write(str(folder), volume, lesions, draw_labels(volume, lesions, MARGIN))
    return [pydicom.dcmread(folder / name) for name in ("lesions_seg.dcm", "lesions_sr.dcm")]


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length", "ignore:The string")
@pytest.mark.parametrize("value", ["1.1.1970", "20210230", "19700101-19710101", "2021", "yesterday"])
def test_dates_that_are_none_are_left_empty(tmp_path, value, check):
    def change(number, image):
        image.PatientBirthDate = image.StudyDate = value
        image.StudyTime, image.PatientSex = {"2021": "1200-1300", "20210230": "235960"}.get(value, "noon"), "female"
        image.PatientID, image.AccessionNumber = "7" * 80, "9" * 30  # too long, but as the archive has it

    for one in written(changed(tmp_path / "ct", change), tmp_path / "out"):
        assert [identity(one)[name] for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")] == [
            ""
        ] * 4
        assert (one.PatientID, one.AccessionNumber) == ("7" * 80, "9" * 30)


@pytest.mark.filterwarnings("ignore:The string")
def test_several_values_in_one_attribute(tmp_path, check):
    def change(number, image):
        image.PatientName, image.PatientID = ["A^B", "C^D"], ["1", "2"]
        image.AccessionNumber, image.ReferringPhysicianName = ["x", "y"], ["E^F", "G^H"]

    for one in written(changed(tmp_path / "ct", change), tmp_path / "out"):
        assert (one.PatientName, one.PatientID, one.AccessionNumber) == ("A^B", "1", "x")
    for name in ("lesions_seg.dcm", "lesions_sr.dcm"):
        check(tmp_path / "out" / name)


def test_what_is_no_text_is_not_copied(tmp_path):
    def change(number, image):
        inner = pydicom.Dataset()
        inner.PatientComments = "inner secret"
        del image.PatientID, image.StudyID
        image.add_new(0x00100020, "SQ", [inner])
        image.add_new(0x00200010, "OB", b"secret")

    for one in written(changed(tmp_path / "ct", change), tmp_path / "out"):
        assert "secret" not in str(one)
        assert (one.PatientID, one.StudyID) == ("", "")


def test_almost_nothing(tmp_path):
    names = (
        "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber SeriesNumber "
        "SliceThickness PositionReferenceIndicator ReferringPhysicianName SpecificCharacterSet"
    )

    def change(number, image):
        for name in names.split():
            if name in image:
                delattr(image, name)

    for one in written(changed(tmp_path / "ct", change), tmp_path / "out"):
        assert set(identity(one).values()) == {""}


def test_of_lossy_images_all_is_lossy(tmp_path, check):
    def change(number, image):
        if number < 5:
            image.LossyImageCompression, image.LossyImageCompressionRatio = "01", [10, 5]
            image.LossyImageCompressionMethod = ["ISO_10918_1", "ISO_15444_1"]

    segmentation, _ = written(changed(tmp_path / "ct", change), tmp_path / "out")
    assert (segmentation.LossyImageCompression, len(segmentation.LossyImageCompressionRatio)) == ("01", 2)
    check(tmp_path / "out" / "lesions_seg.dcm")


@pytest.mark.parametrize("name", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_images_that_do_not_belong_together(tmp_path, name):
    def change(number, image):
        if number == 3:
            setattr(image, name, "1.2.3")

    volume = changed(tmp_path / "ct", change)
    assert source_problem(volume) == f"expected images with one {name}, got 2 different ones"
    for one in written(volume, tmp_path / "out", mint_uids=True):
        assert one.PatientID in ("", volume.origin.value("PatientID"))
        assert (one.PatientID == "") == (name == "PatientID")


def test_nothing_is_said_of_patients(tmp_path, recwarn):
    def change(number, image):
        image.PatientName, image.PositionReferenceIndicator = "MUELLER", "MUELLER HANS 1970"

    volume = changed(tmp_path / "ct", change)
    recwarn.clear()
    for one in written(volume, tmp_path / "out", pseudonymous=True):
        assert "MUELLER" not in str(one)
    assert [str(warning.message) for warning in recwarn if "MUELLER" in str(warning.message)] == []


def test_one_lesion_alone(tmp_path, check):
    write_source(tmp_path / "ct", "axial")
    volume = read_volume(str(tmp_path / "ct"))
    lesions = make_lesions(volume)[:1]
    labels = draw_labels(volume, lesions, MARGIN)
    DicomResults(ALGORITHM).write(str(tmp_path / "out"), volume, lesions, labels.astype(np.int64))
    segmentation = highdicom.seg.segread(tmp_path / "out" / "lesions_seg.dcm")
    assert sum(pixels.sum() for segment, pixels, *_ in frames_of(segmentation) if segment == 1) == (labels == 1).sum()
    for name in ("lesions_seg.dcm", "lesions_sr.dcm"):
        check(tmp_path / "out" / name)


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    write_source(tmp_path / "ct", "axial")
    volume = read_volume(str(tmp_path / "ct"))
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError):
        written(volume, tmp_path / "out")


@pytest.mark.parametrize("bad", [{"name": ""}, {"version": ""}, {"version": "1" * 65}, {"name": "a\\b"}])
def test_algorithms_that_dicom_cannot_name(bad):
    with pytest.raises(ValueError, match="of 1 to 64 characters without a backslash"):
        Algorithm(**{"name": "a", "version": "1", **bad})


@pytest.mark.parametrize("kind", ["nifti", "no UIDs", "tilted and gapped"])
def test_what_cannot_be_referred_to_is_converted(tmp_path, kind, check):
    phantom = random_volume(5, size=64, slice_interval=5.0, length=100.0)
    if kind == "nifti":
        write_nifti(str(tmp_path / "ct.nii"), phantom, codes="RAS")
        path, problem = tmp_path / "ct.nii", "expected a CT in DICOM, which results can refer to, got another format"
    else:
        how = {"tilt": 12.0, "missing": [6]} if kind == "tilted and gapped" else {}
        write_dicom(str(tmp_path / "ct"), phantom, **how)
        for number, file in enumerate((tmp_path / "ct").iterdir()):
            image = pydicom.dcmread(file)
            image.SeriesInstanceUID = image.StudyInstanceUID = ""
            image.SOPInstanceUID = f"1.2.{number}" if kind == "tilted and gapped" else ""
            image.save_as(file)
        path, problem = tmp_path / "ct", "expected a UID of the study, got none"
    volume = read_volume(str(path))
    lesions = make_lesions(volume)
    labels = draw_labels(volume, lesions, MARGIN)
    assert source_problem(volume) == problem
    with pytest.raises(UnreadableVolume, match="--mint-uids"):
        DicomResults(ALGORITHM).write(str(tmp_path / "out"), volume, lesions, labels)
    assert not (tmp_path / "out").exists()
    DicomResults(ALGORITHM, mint_uids=True).write(str(tmp_path / "out"), volume, lesions, labels)
    again = read_volume(str(tmp_path / "out" / "ct"))
    assert source_problem(again) == ""
    np.testing.assert_array_equal(again.hu, volume.hu)
    for k in (0, 5, 6, 7, -1):
        np.testing.assert_allclose(again.position_of(3, 50, k), volume.position_of(3, 50, k), atol=1e-6)
    segmentation = highdicom.seg.segread(tmp_path / "out" / "lesions_seg.dcm")
    assert segmentation.StudyInstanceUID == again.origin.value("StudyInstanceUID")
    read = segmentation.get_pixels_by_source_instance(
        list(again.instances), segment_numbers=[1, 2, 3, 4], combine_segments=True, relabel=False,
        assert_missing_frames_are_empty=True,
    )  # fmt: skip
    np.testing.assert_array_equal(read, labels)
    for file in ("ct/0001.dcm", "ct/0012.dcm", "lesions_seg.dcm", "lesions_sr.dcm"):
        check(tmp_path / "out" / file)


def test_uids_are_not_minted_where_there_are_some(tmp_path):
    case = Case("axial", tmp_path, mint_uids=True)
    assert not (tmp_path / "dicom" / "ct").exists()
    assert case.segmentation.StudyInstanceUID == case.volume.origin.value("StudyInstanceUID")


def test_sources_that_nothing_can_refer_to(tmp_path):
    write_source(tmp_path, "axial")
    volume = read_volume(str(tmp_path))

    def problem(attributes=(), **changes):
        values = {name: [(value,)] for name, value in dict(attributes).items()}
        changes["attributes"] = {**volume.origin.attributes, **values}
        return source_problem(replace(volume, origin=replace(volume.origin, **changes)))

    instances = volume.instances
    assert problem() == ""
    assert problem(series="") == "expected a UID of the series, got none"
    assert problem(series="1.2.x") == "expected a UID of the series, got '1.2.x'"
    assert "UID of the image, got none" in problem(instances=(*instances[:-1], ""))
    assert "UID each, got some with the same" in problem(instances=(*instances[:-1], instances[0]))
    assert "UID of the frame of reference" in problem({"FrameOfReferenceUID": ""})
    assert "UID of the study" in problem({"StudyInstanceUID": "0.1." + "2" * 70})
    assert problem(sop_class="").endswith("got several or none")
    assert "CT Image Storage, got MR Image Storage" in problem(sop_class=pydicom.uid.MRImageStorage)
    frames = tuple(range(len(instances)))
    assert "class Enhanced CT Image Storage, got CT Image Storage" in problem(frames=frames, sop_class=CTImageStorage)
    assert "expected one multi-frame image, got" in problem(frames=frames, sop_class=pydicom.uid.EnhancedCTImageStorage)


def test_lesions_below_a_score_are_left_out(tmp_path):
    case = Case("axial", tmp_path, min_score=0.55)
    assert case.segmentation.segment_numbers == [1, 2, 3]
    assert len(case.report.content.get_image_measurement_groups()) == 3
    read = {segment for segment, *_ in frames_of(case.segmentation)}
    assert read == {1, 2, 3}


def test_no_lesion(tmp_path):
    write_source(tmp_path / "ct", "axial")
    volume = read_volume(str(tmp_path / "ct"))
    DicomResults(ALGORITHM).write(str(tmp_path / "out"), volume, [], np.zeros(volume.hu.shape, np.uint16))
    assert not (tmp_path / "out").exists()


def test_two_series_of_a_study(tmp_path):
    """Each result refers to its own series."""
    for name, interval in (("a", 5.0), ("b", 6.0)):
        write_dicom(str(tmp_path / "ct" / name), random_volume(5, size=64, slice_interval=interval, length=100.0))
    study = "1.2.826.0.1.3680043.8.498.1"
    for path in (tmp_path / "ct").glob("*/*"):
        image = pydicom.dcmread(path)
        image.StudyInstanceUID = study
        image.save_as(path)
    written = {}
    for name in ("a", "b"):
        volume = read_volume(str(tmp_path / "ct" / name))
        lesions = make_lesions(volume)
        labels = draw_labels(volume, lesions, MARGIN)
        DicomResults(ALGORITHM).write(str(tmp_path / name), volume, lesions, labels)
        segmentation = pydicom.dcmread(tmp_path / name / "lesions_seg.dcm")
        assert segmentation.StudyInstanceUID == study
        (series,) = segmentation.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == volume.origin.series
        written[name] = {segmentation.SeriesInstanceUID, segmentation.SOPInstanceUID, series.SeriesInstanceUID}
    assert not written["a"] & written["b"]


def isolated(*command) -> subprocess.CompletedProcess:
    """Run in a network namespace that has nothing but a loopback."""
    return subprocess.run(["unshare", "--net", *map(str, command)], capture_output=True, text=True, timeout=300)


def test_an_archive_takes_them_and_gives_them_back(case, tmp_path):
    if not shutil.which("Orthanc") or not PLUGIN.exists():
        pytest.skip("Orthanc with its DICOMweb plugin (Debian's orthanc and orthanc-dicomweb) is not installed")
    if isolated("ip", "link").returncode:
        pytest.skip("this user may not make a network namespace")
    sources = sorted((case.folder / "ct").iterdir())
    files = [*sources, case.segmentation_path, case.report_path]
    done = isolated(sys.executable, Path(__file__).with_name("archive.py"), tmp_path, *files)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["stored"], said["studies"]) == (len(files), 1)
    found = {one["modality"]: one for one in said["series"]}
    assert {name: one["count"] for name, one in found.items()} == {"CT": len(sources), "SEG": 1, "SR": 1}
    assert found["CT"]["series"] == case.volume.origin.series
    assert found["SEG"]["series"] == case.segmentation.SeriesInstanceUID
    assert said["bytes"] > sum(path.stat().st_size for path in files)


def test_an_archive_refuses_what_is_none(tmp_path):
    if not shutil.which("Orthanc") or not PLUGIN.exists() or isolated("ip", "link").returncode:
        pytest.skip("see above")
    (tmp_path / "letter.dcm").write_text("Dear colleague")
    done = isolated(sys.executable, Path(__file__).with_name("archive.py"), tmp_path, tmp_path / "letter.dcm")
    assert json.loads(done.stdout)["stored"] == 0
