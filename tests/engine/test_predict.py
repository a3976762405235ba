"""The command: what it writes, and each kind of bad input as a sentence with exit status 2."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

from pydicom.uid import JPEGLSLossless

from a3d_det2.engine import predict
from a3d_det2.engine.predict import main
from a3d_det2.volumes.phantom import random_volume, write_dicom, write_nifti, write_png
from tests.engine.conftest import TINY
from tests.engine.test_predictor import make_config, save_weights
from tests.volumes.dicom_sources import write_source

ONE_ENGINE = pytest.mark.parametrize("engine", ["torchvision_loop"], indirect=True)  # where it has no part in it
FILES = ["lesions.csv", "lesions.json", "lesions.mrk.json", "lesions.nii.gz", "viewer.html"]
ALL_BUT_TEXT = "viewer,pictures,labels,markups"
SIZES = ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64"]


@pytest.fixture(scope="session")
def phantom():
    return random_volume(3, size=64, slice_interval=6.0, length=120.0, lesion_size=(20.0, 40.0))


@pytest.fixture(scope="session")
def nifti(phantom, tmp_path_factory):
    path = tmp_path_factory.mktemp("patients") / "Smith_John_1970.nii.gz"
    write_nifti(str(path), phantom)
    return path


@pytest.fixture(scope="session")
def series(phantom, tmp_path_factory):
    folder = tmp_path_factory.mktemp("patients") / "Smith_John"
    write_dicom(str(folder), phantom)
    return folder


@pytest.fixture
def weights(engine, tmp_path):
    path = tmp_path / "model.pth"
    save_weights(engine, make_config(engine, *SIZES), path)
    return path


@pytest.fixture
def run(engine, weights, capfd):
    """Runs the command; returns what it printed, and its error with its exit status 2, or None."""
    name = "detectron2" if hasattr(engine, "Trainer") else "torchvision"

    def run(source, output, *arguments, config="quick/a3d_7slice.yaml", model=weights, opts=()):
        command = ["-i", str(source), "-o", str(output), "--config-file", config, "--weights", str(model)]
        command += ["--engine", name, "--min-score", "0.3", "--link-iou", "0.2", *arguments, *TINY, *SIZES, *opts]
        return finish(command, capfd)

    return run


def finish(command, capfd):
    status = None
    try:
        main(list(map(str, command)))
    except SystemExit as error:
        status = error.code
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    if status is None:
        return printed.out, None
    assert status == 2, printed.err
    return printed.out, printed.err[printed.err.index(": error: ") :]


def identifiers(path) -> list[str]:
    tags = pydicom.dcmread(path)
    return [str(tags.get(name, "")) for name in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID")]


def test_writes_all_there_is(run, nifti, tmp_path):
    printed, error = run(nifti, tmp_path / "out")
    assert error is None
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".png") == FILES
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name or "old" in path.name] == []
    content = json.loads((folder / "lesions.json").read_text())
    assert (content["format"], content["version"]) == ("a3d_det2 lesions", 1)
    lesions = content["lesions"]
    assert f"{len(lesions)} lesion" in printed
    assert lesions
    scores = [one["score"] for one in lesions]
    assert scores == sorted(scores, reverse=True)
    rows = list(csv.DictReader((folder / "lesions.csv").open()))
    assert [float(row["score"]) for row in rows] == scores
    labels, ct = nibabel.load(folder / "lesions.nii.gz"), nibabel.load(nifti)
    np.testing.assert_allclose(labels.affine, ct.affine, atol=1e-4)
    assert labels.shape == ct.shape
    values = np.asarray(labels.dataobj)
    assert set(np.unique(values)) <= {0, *(one["id"] for one in lesions)}
    top = lesions[0]
    low, high = np.array(top["box_voxel"])
    places = np.argwhere(values == top["id"])
    assert (places >= np.floor(low)).all()
    assert (places <= np.ceil(high)).all()
    page = (folder / "viewer.html").read_text()
    assert str(top["score"]) in page
    everything = "".join(path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".csv", ".html"))
    assert "Smith" not in everything


@ONE_ENGINE
def test_paths_of_the_command_line_are_left_out(run, nifti, tmp_path):
    opts = ["OUTPUT_DIR", "/data/Smith_John"]
    assert run(nifti, tmp_path / "out", "--without", ALL_BUT_TEXT, opts=opts)[1] is None
    text = (tmp_path / "out" / "lesions.json").read_text()
    assert "Smith" not in text
    assert "(a path)" in text


def test_dicom_has_instances_and_no_names(run, series, tmp_path):
    _, error = run(series, tmp_path / "out")
    assert error is None
    content = json.loads((tmp_path / "out" / "lesions.json").read_text())
    instances = {str(pydicom.dcmread(path).SOPInstanceUID) for path in series.iterdir()}
    assert {one["instance_uid"] for one in content["lesions"]} <= instances
    names = [*filter(None, identifiers(next(series.iterdir()))), "Smith"]
    for path in (tmp_path / "out").iterdir():
        assert not any(name.encode() in path.read_bytes() for name in names), path
    _, error = run(series, tmp_path / "out", "--keep-identifiers", "--without", ALL_BUT_TEXT)
    assert error is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lesions.csv", "lesions.json"]
    text = (tmp_path / "out" / "lesions.json").read_text()
    assert all(name in text for name in names[:-1])


def test_several_volumes_each_in_its_folder(run, phantom, nifti, tmp_path):
    both = tmp_path / "both"
    write_dicom(str(both / "a"), phantom)
    shutil.copy(nifti, both / "b.nii.gz")
    (both / "notes.txt").write_text("nothing")
    _, error = run(both, tmp_path / "out", "--without", ALL_BUT_TEXT)
    assert error is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["volume_01", "volume_02"]
    first, second = (
        json.loads((tmp_path / "out" / name / "lesions.json").read_text())["lesions"]
        for name in ("volume_01", "volume_02")
    )
    assert len(first) == len(second) > 0
    _, error = run(both, tmp_path / "one", "--series", "b", "--without", ALL_BUT_TEXT)
    assert error is None
    assert json.loads((tmp_path / "one" / "lesions.json").read_text())["lesions"] == second


@ONE_ENGINE
def test_one_bad_volume_does_not_end_the_others(run, nifti, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    shutil.copy(nifti, both / "b.nii.gz")
    (both / "a.nii.gz").write_bytes(nifti.read_bytes()[:20000])
    _, error = run(both, tmp_path / "out", "--without", ALL_BUT_TEXT)
    assert "1 of 2 volumes failed.\n  a: " in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["volume_02"]


def test_list(nifti, series, tmp_path, capfd):
    both = tmp_path / "both"
    shutil.copytree(series, both)
    shutil.copy(nifti, both / "b.nii.gz")
    printed, error = finish(["-i", str(both), "--list"], capfd)
    assert error is None
    lines = printed.splitlines()
    assert "DICOM" in lines[2]
    assert "can be predicted" in lines[2]
    assert "64 x 64" in lines[2]
    assert "axial" in lines[2]
    assert "NIfTI" in lines[3]
    printed, error = finish(["-i", str(tmp_path / "both" / "b.nii.gz"), "--list"], capfd)
    assert "can be predicted" in printed
    (tmp_path / "empty").mkdir()
    assert "no volume" in finish(["-i", str(tmp_path / "empty"), "--list"], capfd)[0]


@ONE_ENGINE
def test_png_with_spacing(run, phantom, tmp_path):
    write_png(str(tmp_path / "deeplesion"), phantom)
    (folder,) = (tmp_path / "deeplesion" / "Images_png").iterdir()
    _, error = run(folder, tmp_path / "out", "--without", ALL_BUT_TEXT)
    assert error is None
    (tmp_path / "deeplesion" / "DL_info.csv").unlink()
    _, error = run(folder, tmp_path / "other")
    assert "expected the distances of columns, rows and slices in mm, as --spacing X Y Z" in error
    x, y = np.linalg.norm(phantom.affine[:3, :2], axis=0)
    _, error = run(folder, tmp_path / "other", "--spacing", x, y, 6, "--without", ALL_BUT_TEXT)
    assert error is None
    first, second = (json.loads((tmp_path / name / "lesions.json").read_text())["lesions"] for name in ("out", "other"))
    assert [one["score"] for one in first] == pytest.approx([one["score"] for one in second], abs=1e-6)


def rewrite(series, folder, change):
    """A copy of a series whose files ``change`` has changed; it returns False for what is left out."""
    folder.mkdir()
    for number, path in enumerate(sorted(series.iterdir())):
        tags = pydicom.dcmread(path)
        if change(number, tags) is not False:
            tags.save_as(folder / f"{number:03d}.dcm")
    return folder


def set_tags(**values):
    return lambda number, tags: [setattr(tags, name, value) for name, value in values.items()] and None


def turn_half(number, tags):
    if number % 2:
        tags.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def cut_pixels(number, tags):
    if number == 3:
        tags.PixelData = tags.PixelData[:1000]


def small(number, tags):
    tags.Rows = tags.Columns = 16
    tags.PixelData = tags.PixelData[:512]


DICOM_FAULTS = {
    "MR": (set_tags(Modality="MR"), "expected a CT, got the modality MR"),
    "RT structure set": (set_tags(Modality="RTSTRUCT"), "expected a CT, got the modality RTSTRUCT"),
    "secondary capture": (
        set_tags(SOPClassUID=pydicom.uid.SecondaryCaptureImageStorage),
        "it is a secondary capture, a picture of a screen",
    ),
    "coronal": (set_tags(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "expected axial slices, got some 90 degrees"),
    "one slice": (lambda number, tags: number == 4, "expected several slices, got 1"),
    "no geometry": (set_tags(ImagePositionPatient=None), "it has no geometry"),
    "cut off": (cut_pixels, "the slice cannot be read"),
    "16 x 16": (small, "expected slices of at least 32 x 32 pixels, got 16 x 16"),
    "no numbers": (set_tags(PixelSpacing=[float("nan"), 1.0]), "it has no geometry"),
    "empty slope": (set_tags(RescaleSlope=None), "expected HU, got a slice without them"),
    "two orientations": (turn_half, "expected slices of one orientation in a series, got several"),
}


@ONE_ENGINE
@pytest.mark.parametrize("fault", DICOM_FAULTS)
def test_dicom_that_cannot_be_used(run, series, tmp_path, fault):
    change, message = DICOM_FAULTS[fault]
    _, error = run(rewrite(series, tmp_path / "bad", change), tmp_path / "out")
    assert message in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


@ONE_ENGINE
def test_a_compression_that_nothing_decodes(run, series, tmp_path, monkeypatch):
    def compress(number, tags):
        tags.file_meta.TransferSyntaxUID = JPEGLSLossless
        tags.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
        tags["PixelData"].VR = "OB"
        tags["PixelData"].is_undefined_length = True

    folder = rewrite(series, tmp_path / "bad", compress)
    _, error = run(folder, tmp_path / "out")
    assert "it is stored as JPEG-LS Lossless Image Compression, which the package python-gdcm decodes" in error


def save(path, values, affine=None, codes=1):
    affine = np.diag([-6.0, -6, 6, 1]) if affine is None else affine
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, codes)
    image.set_qform(affine if codes else None, codes)
    nibabel.save(image, path)
    return path


SHEARED = np.array([[3.0, 1, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])


def nan_values(shape):
    values = np.zeros(shape, np.float32)
    values[1, 2, 3] = np.nan
    return values


NIFTI_FAULTS = {
    "labels": (lambda path: save(path, np.ones((64, 64, 9), np.uint8)), "expected HU, of which fat and air have"),
    "huge": (lambda path: save(path, np.zeros((64, 64, 9), np.int16), np.diag([900.0, 900, 9, 1])), "expected pixels"),
    "complex": (lambda path: save(path, np.zeros((64, 64, 9), np.complex64)), "values of the type complex64"),
    "coronal": (
        lambda path: save(path, np.zeros((64, 64, 9), np.int16), np.diag([1.0, 5, 1, 1])),
        "expected axial slices with pixels that are about as wide as high, got 1 x 5 mm",
    ),
    "sheared": (
        lambda path: save(
            path, np.zeros((64, 64, 9), np.int16), np.diag([3.0, 3, 3, 1]) + np.eye(4, k=1) * [0, 1, 0, 0]
        ),
        "expected columns perpendicular to rows, got a sheared image",
    ),
    "NaN": (lambda path: save(path, nan_values((64, 64, 9))), "expected HU, got values that are no finite numbers"),
    "4D": (lambda path: save(path, np.zeros((64, 64, 9, 2), np.int16)), "expected a volume of three dimensions"),
    "no geometry": (lambda path: save(path, np.zeros((64, 64, 9), np.int16), codes=0), "expected a geometry"),
    "16 x 16": (lambda path: save(path, np.zeros((16, 16, 9), np.int16)), "at least 32 x 32 pixels, got 16 x 16"),
    "one slice": (lambda path: save(path, np.zeros((64, 64, 1), np.int16)), "expected several slices, got 1"),
    "oblique": (
        lambda path: save(
            path,
            np.zeros((64, 64, 40), np.int16),
            np.array([[3, 0, 0, 0], [0, 2, 2, 0], [0, -2, 2, 0], [0, 0, 0, 1.0]]),
        ),
        "expected axial slices, got some 45 degrees from them",
    ),
    "air alone": (lambda path: save(path, np.full((64, 64, 9), -1000, np.int16)), "expected a body in air, in HU"),
    "no NIfTI": (lambda path: path.write_bytes(b"no image"), "expected a NIfTI file, got an unreadable one"),
}


@ONE_ENGINE
@pytest.mark.parametrize("fault", NIFTI_FAULTS)
def test_nifti_that_cannot_be_used(run, tmp_path, fault):
    write, message = NIFTI_FAULTS[fault]
    write(tmp_path / "bad.nii")
    _, error = run(tmp_path / "bad.nii", tmp_path / "out")
    assert message in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


@ONE_ENGINE
def test_nothing_that_is_a_ct(run, tmp_path):
    assert "none: no such file or folder" in run(tmp_path / "none", tmp_path / "out")[1]
    (tmp_path / "empty").mkdir()
    wanted = "expected a CT as DICOM, NIfTI or 16-bit PNG, got no such file"
    assert wanted in run(tmp_path / "empty", tmp_path / "out")[1]
    (tmp_path / "empty" / "letter.txt").write_text("Dear colleague")
    assert wanted in run(tmp_path / "empty", tmp_path / "out")[1]


def test_models_that_cannot_work(run, engine, nifti, tmp_path):
    save_weights(engine, make_config(engine, *SIZES, "MODEL.A3D.GROWTH_RATE", "6"), tmp_path / "other.pth")
    assert "The weights do not fit the model" in run(nifti, tmp_path / "out", model=tmp_path / "other.pth")[1]
    assert "there is no file" in run(nifti, tmp_path / "out", model=tmp_path / "none.pth")[1]
    assert "There is no file 'none.yaml'" in run(nifti, tmp_path / "out", config="none.yaml")[1]
    assert "INPUT.SLICE_INTERVAL" in run(nifti, tmp_path / "out", opts=["INPUT.SLICE_INTERVAL", "-1.0"])[1]
    assert "Expected an iou above 0 and up to 1, got 2.0" in run(nifti, tmp_path / "out", "--link-iou", "2")[1]
    assert "Expected a step in mm from 0 on" in run(nifti, tmp_path / "out", "--step", "-1")[1]
    assert "Expected a batch_size from 1 on" in run(nifti, tmp_path / "out", "--batch-size", "0")[1]
    assert "Expected a min_score from 0 to 1, got nan" in run(nifti, tmp_path / "out", "--min-score", "nan")[1]
    assert "Expected a box_margin in pixels from 0 on" in run(nifti, tmp_path / "out", "--box-margin", "inf")[1]
    assert not (tmp_path / "out").exists()


@ONE_ENGINE
def test_folders_with_other_things_are_left_alone(run, nifti, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    (tmp_path / "out" / "lesions.json").write_text("{}")
    assert "one with results alone, got one with 'thesis.tex'" in run(nifti, tmp_path / "out")[1]
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    assert "expected a folder for the results, got a file" in run(nifti, tmp_path / "file")[1]
    ct = tmp_path / "ct"
    ct.mkdir()
    shutil.copy(nifti, ct / "ct.nii.gz")
    for output in (ct, tmp_path, ct / ".." / "ct"):
        assert "expected an --output that does not hold the input" in run(ct / "ct.nii.gz", output)[1]
    assert "got a mount point" in run(nifti, "/proc")[1]


@ONE_ENGINE
def test_dicom_files_of_ones_own_are_left_alone(run, nifti, series, tmp_path):
    """A patient's folder with a CT in dicom/ct, and another file to predict."""
    patient = tmp_path / "patient"
    (patient / "dicom").mkdir(parents=True)
    shutil.copytree(series, patient / "dicom/ct")
    for number, path in enumerate(sorted((patient / "dicom/ct").iterdir())):
        path.rename(path.with_name(f"{number:04d}.dcm"))
    count = len(list((patient / "dicom/ct").iterdir()))
    assert "got one with 'dicom'" in run(nifti, patient, "--without", ALL_BUT_TEXT)[1]
    (patient / "lesions.json").write_text('{"my": "annotations"}')
    assert "got one with 'dicom'" in run(nifti, patient, "--without", ALL_BUT_TEXT)[1]
    assert len(list((patient / "dicom/ct").iterdir())) == count
    listed, _ = run(patient, tmp_path / "out", "--list")  # nor are annotations a reason to leave the CT out
    assert "DICOM" in listed
    assert "can be predicted" in listed


@ONE_ENGINE
def test_results_beside_the_ct_are_no_ct(run, nifti, tmp_path):
    ct = tmp_path / "ct"
    ct.mkdir()
    shutil.copy(nifti, ct / "ct.nii.gz")
    for _ in range(2):
        assert run(ct, ct / "results", "--without", "viewer,pictures")[1] is None
        assert sorted(path.name for path in (ct / "results").iterdir()) == FILES[:-1]
    link = tmp_path / "link"
    link.symlink_to(ct / "results")
    assert run(nifti, link, "--without", ALL_BUT_TEXT)[1] is None
    assert link.is_symlink()
    assert sorted(path.name for path in (ct / "results").iterdir()) == FILES[:2]


@ONE_ENGINE
def test_a_full_disk_leaves_what_was_there(run, nifti, tmp_path, monkeypatch):
    _, error = run(nifti, tmp_path / "out")
    before = (tmp_path / "out" / "lesions.json").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("a3d_det2.volumes.writing.write_csv", full)
    _, error = run(nifti, tmp_path / "out", "--min-score", "0.9")
    assert "No space left on device" in error
    assert (tmp_path / "out" / "lesions.json").read_bytes() == before
    _, error = run(nifti, tmp_path / "new")
    assert "No space left on device" in error
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out"]


def test_killed_while_it_writes(engine, weights, nifti, tmp_path):
    """Whenever it is killed, there is no folder of results, or a whole one."""
    name = "detectron2" if hasattr(engine, "Trainer") else "torchvision"
    command = [sys.executable, "-c", "from a3d_det2.engine.predict import main; main()", "-i", nifti]
    command += ["-o", tmp_path / "out", "--config-file", "quick/a3d_7slice.yaml", "--weights", weights]
    command += ["--engine", name, "--min-score", "0.3", "--link-iou", "0.2", *TINY, *SIZES]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob("out.*.part/*")) and process.poll() is None:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    if (tmp_path / "out").exists():  # it was faster
        assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".png") == FILES
    else:
        assert not list(tmp_path.glob("out.*.part/lesions.json")) or process.returncode == -signal.SIGKILL


def test_dicom(run, series, tmp_path):
    pytest.importorskip("highdicom")
    printed, error = run(series, tmp_path / "out", "--dicom", "--without", "viewer,pictures")
    assert error is None
    paths = [tmp_path / "out/dicom" / f"lesions_{name}.dcm" for name in ("seg", "sr")]
    segmentation, report = (pydicom.dcmread(path) for path in paths)
    source = pydicom.dcmread(next(series.iterdir()))
    lesions = json.loads((tmp_path / "out/lesions.json").read_text())
    assert len(segmentation.SegmentSequence) == len(lesions["lesions"]) > 0
    for path, one in zip(paths, (segmentation, report), strict=True):
        assert (one.StudyInstanceUID, one.PatientID) == (source.StudyInstanceUID, source.PatientID)
        assert f"weights_sha256={lesions['how']['weights_sha256']}".encode() in path.read_bytes()
        assert b"Smith" not in path.read_bytes()  # of the CT's path
    labels = np.asarray(nibabel.load(tmp_path / "out/lesions.nii.gz").dataobj)
    pixels = np.unpackbits(np.frombuffer(segmentation.PixelData, np.uint8))
    assert pixels.sum() == (labels > 0).sum()
    scores = [one["score"] for one in lesions["lesions"]]
    middle = scores[len(scores) // 2]
    few = ["--dicom", "--pseudonymous", "--dicom-score", middle, "--without", ALL_BUT_TEXT]
    assert run(series, tmp_path / "out", *few)[1] is None
    segmentation = pydicom.dcmread(paths[0])
    assert len(segmentation.SegmentSequence) == sum(score >= middle for score in scores)
    assert not segmentation.PatientID
    printed, _ = run(series, tmp_path / "out", "--dicom", "--min-slices", "99", "--without", ALL_BUT_TEXT)
    assert "Note: without a lesion there is neither a Segmentation nor a report." in printed
    assert not (tmp_path / "out/dicom").exists()


@ONE_ENGINE
def test_dicom_of_what_is_none(run, nifti, tmp_path, capfd):
    pytest.importorskip("highdicom")
    _, error = run(nifti, tmp_path / "out", "--dicom")
    assert "expected a CT in DICOM, which results can refer to, got another format; mint_uids (--mint-uids)" in error
    assert not (tmp_path / "out").exists()
    for _ in range(2):  # results with a CT among them are results
        _, error = run(nifti, tmp_path / "out", "--dicom", "--mint-uids", "--without", ALL_BUT_TEXT)
        assert error is None
    depth = nibabel.load(nifti).shape[2]
    assert len(list((tmp_path / "out/dicom/ct").iterdir())) == depth
    (tmp_path / "out/dicom/ct/mine.txt").write_text("years of work")
    assert "got one with 'mine.txt'" in run(nifti, tmp_path / "out", "--without", ALL_BUT_TEXT)[1]
    (tmp_path / "out/dicom/ct/mine.txt").unlink()
    (tmp_path / "ct").mkdir()
    shutil.copy(nifti, tmp_path / "ct")
    shutil.move(tmp_path / "out", tmp_path / "ct/results")
    listed, _ = finish(["-i", str(tmp_path / "ct"), "--list"], capfd)
    assert ("NIfTI" in listed, "DICOM" in listed) == (True, False)


@ONE_ENGINE
def test_targets_that_cannot_be_written(run, nifti, tmp_path):
    _, error = run(nifti, "/proc/nothing/out")
    assert "/proc/nothing" in error


@ONE_ENGINE
def test_a_multi_frame_image_with_frames_missing(run, tmp_path):
    write_source(tmp_path / "ct", "enhanced")
    (path,) = (tmp_path / "ct").iterdir()
    image = pydicom.dcmread(path)
    image.PixelData = image.PixelData[: len(image.PixelData) // 2]
    image.save_as(path)
    _, error = run(tmp_path / "ct", tmp_path / "out", "--dicom")
    assert "the slice cannot be read" in error
    image.NumberOfFrames //= 2
    image.save_as(path)
    _, error = run(tmp_path / "ct", tmp_path / "out", "--dicom")
    assert "got a slice without them" in error
    assert not (tmp_path / "out").exists()


@ONE_ENGINE
def test_without_highdicom(run, series, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "find_spec", lambda name: None)
    _, error = run(series, tmp_path / "out", "--dicom")
    assert "--dicom needs highdicom: pip install 'a3d_det2[dicom]'." in error


def test_arguments(capfd):
    for option in (["--mint-uids"], ["--pseudonymous"], ["--dicom-score", "0.5"]):
        _, error = finish(["-i", "ct", "-o", "out", "--config-file", "a", *option], capfd)
        assert "expected --dicom with --mint-uids, --pseudonymous and --dicom-score" in error
    _, error = finish(["-i", "ct", "-o", "out", "--config-file", "a", "--dicom", "--dicom-score", "2"], capfd)
    assert "expected a --dicom-score from 0 to 1, got 2.0" in error
    _, error = finish(["-i", "ct", "-o", "out", "--config-file", "a", "--without", "viewer,pdf"], capfd)
    assert "argument --without: expected of labels, markups, pictures, viewer, got pdf" in error
    _, error = finish(["-i", "ct"], capfd)
    assert "expected --output and --config-file, or --list" in error


def test_the_engine_that_is_not_there(nifti, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(predict, "detectron2_problem", lambda: "it is not installed")
    command = ["-i", str(nifti), "-o", str(tmp_path / "out"), "--config-file", "quick/a3d_7slice.yaml"]
    _, error = finish([*command, "--engine", "detectron2"], capfd)
    assert "--engine detectron2: it is not installed" in error
