"""Phantom volumes: what the truth says against the voxels, and every format against what was drawn."""

import filecmp
import json
import math
import os
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from a3d_det2.data import load_deeplesion
from a3d_det2.data.slices import read_slice
from a3d_det2.volumes import read_volume
from a3d_det2.volumes.phantom import (
    VolumeOptions,
    labels,
    random_volume,
    render,
    truth,
    write_dicom,
    write_labels,
    write_nifti,
    write_png,
    write_training_series,
)
from a3d_det2.volumes.phantom.blobs import draw_blob
from a3d_det2.volumes.phantom.dicom import random_storage
from a3d_det2.volumes.phantom.invention import INTERVALS

OPTIONS = {"size": 96, "slice_interval": 4.0, "length": 240.0, "lesion_size": (14.0, 40.0), "seed": 5}


@pytest.fixture(scope="module")
def volume():
    return random_volume(0, **OPTIONS)


def label_map(volume):
    return np.stack([labels(volume, k) for k in range(volume.depth)])


def points(volume):
    """Patient coordinates of all voxels, (D, H, W, 3), from the affine."""
    z, y, x = np.meshgrid(*map(np.arange, volume.shape), indexing="ij")
    return np.stack([x, y, z], axis=-1) @ volume.affine[:3, :3].T + volume.affine[:3, 3]


@pytest.mark.parametrize("turned", [{}, {"oblique": 8.0}, {"tilt": -15.0}])
def test_the_label_map_is_that_of_the_ellipsoids(volume, turned):
    volume = replace(volume, **turned)
    expected = np.zeros(volume.shape, np.uint8)
    for number, lesion in enumerate(volume.lesions, start=1):
        away = points(volume) - volume.to_patient(lesion.x, lesion.y, lesion.z)
        cos, sin = math.cos(lesion.angle), math.sin(lesion.angle)
        along, across = away[..., 0] * cos + away[..., 1] * sin, away[..., 1] * cos - away[..., 0] * sin
        inside = (along / lesion.long) ** 2 + (across / lesion.short) ** 2 + (away[..., 2] / lesion.depth) ** 2 < 1
        expected[inside] = number
    assert (label_map(volume) != expected).sum() <= 2  # by rounding
    assert expected.any()


@pytest.mark.parametrize("turned", [{}, {"oblique": 8.0}, {"tilt": -15.0}])
def test_truth_is_what_the_label_map_shows(volume, turned):
    volume = replace(volume, **turned)
    found, marked = truth(volume), label_map(volume)
    assert json.loads(json.dumps(found)) == found
    assert found["shape"] == list(marked.shape)
    np.testing.assert_allclose(found["affine"], volume.affine, atol=1e-8)
    assert [lesion["number"] for lesion in found["lesions"]] == sorted(set(marked.ravel().tolist()) - {0})
    for lesion in found["lesions"]:
        mask = marked == lesion["number"]
        z, y, x = np.nonzero(mask)
        assert lesion["box_voxel"] == [[x.min(), y.min(), z.min()], [x.max(), y.max(), z.max()]]
        assert lesion["box_deeplesion"] == [
            [x.min() - 5, y.min() - 5, z.min()],
            [x.max() + 5, y.max() + 5, z.max()],
        ]
        assert lesion["voxels"] == mask.sum()
        assert lesion["is_cut"] == bool(mask[0].any() or mask[-1].any())
        if lesion["is_cut"]:
            continue
        assert mask[lesion["central_slice"]].any()
        centroid = np.array([x.mean(), y.mean(), z.mean()])
        assert np.abs(centroid - lesion["center_voxel"]).max() < 0.6
        np.testing.assert_allclose(
            volume.affine[:3, :3] @ lesion["center_voxel"] + volume.affine[:3, 3], lesion["center_lps"], atol=1e-3
        )
        cell = abs(np.linalg.det(volume.affine[:3, :3]))
        assert mask.sum() * cell == pytest.approx(lesion["volume_mm3"], rel=0.25)  # of some 20 voxels
        low, high = lesion["box_lps"]
        inside = points(volume)[mask]
        assert (inside.min(axis=0) > low).all()
        assert (inside.max(axis=0) < high).all()
        assert lesion["long_mm"] >= lesion["short_mm"]
        if not turned:
            size = np.array(high) - low
            steps = [volume.pixel, volume.pixel, volume.slice_interval]
            box = np.array(lesion["box_voxel"])
            np.testing.assert_allclose(size, (box[1] - box[0] + 1) * steps, atol=1e-3)


def test_volumes_of_all_lesions_together():
    """Of one lesion a voxel's edge decides; of many it does not."""
    counted = measured = 0.0
    for index in range(8):
        volume = random_volume(index, **{**OPTIONS, "slice_interval": 2.0})
        for lesion in truth(volume)["lesions"]:
            counted += lesion["voxels"] * volume.pixel**2 * volume.slice_interval
            measured += lesion["volume_mm3"]
    assert counted == pytest.approx(measured, rel=0.02)


def test_recist_axes_end_on_the_edge_of_the_label(volume):
    for number, lesion in enumerate(volume.lesions, start=1):
        k = round(lesion.z / volume.slice_interval)
        recist = lesion.recist(k * volume.slice_interval) / volume.pixel + (volume.width - 1) / 2
        mask = labels(volume, k) == number
        y, x = np.nonzero(mask)
        for end, axis in zip(recist, np.repeat([recist[0] - recist[1], recist[2] - recist[3]], 2, axis=0), strict=True):
            middle, reach = recist.mean(axis=0), np.hypot(*axis) / 2
            sign = np.sign((end - middle) @ axis)
            furthest = max(sign * ((x - middle[0]) * axis[0] + (y - middle[1]) * axis[1]) / np.hypot(*axis))
            assert reach - 1.2 < furthest <= reach + 1e-6
        size = float(lesion.size(np.float64(k * volume.slice_interval)))
        assert np.hypot(*(recist[0] - recist[1])) * volume.pixel == pytest.approx(2 * lesion.long * size)
        assert np.hypot(*(recist[2] - recist[3])) * volume.pixel == pytest.approx(2 * lesion.short * size)


def test_what_is_drawn():
    for index in range(12):
        volume = random_volume(index, size=64)
        assert 3 <= len(volume.lesions) <= 8
        assert 8 <= len(volume.vessels) <= 20
        assert volume.slice_interval in INTERVALS
        assert 290 < volume.body.length < 610
        assert 307 < volume.pixel * 64 < 487
        for lesion in volume.lesions:
            assert 2.5 <= lesion.long <= 20
            assert 0.6 <= lesion.short / lesion.long <= 1
            assert 0.69 < lesion.depth / ((lesion.long + lesion.short) / 2) < 1.21
            assert 110 <= lesion.hu <= 160
            assert 0 <= lesion.first < lesion.last <= volume.body.length
        assert len(truth(volume)["lesions"]) == len(volume.lesions)  # each has a voxel
        for vessel in volume.vessels:
            assert math.degrees(math.atan(math.hypot(*vessel.drift))) <= 70.0001
    deep = random_volume(0, size=64, lesion_depth=(3.0, 4.0))
    assert all(3 <= lesion.depth <= 4 for lesion in deep.lesions)


def test_the_same_arguments_give_the_same_volume(volume):
    again, other = random_volume(0, **OPTIONS), random_volume(1, **OPTIONS)
    assert truth(again) == truth(volume)
    assert again.vessels == volume.vessels
    for k in (7, 3):
        assert np.array_equal(render(again, k), render(volume, k))
    assert truth(other)["lesions"] != truth(volume)["lesions"]
    assert random_volume(0, **{**OPTIONS, "seed": 6}).lesions != volume.lesions


def test_a_slice_does_not_tell_lesions_from_vessels(volume):
    """A tube with the section of the lesion is drawn as the lesion is."""
    lesion = volume.lesions[0]
    k = round(lesion.z / volume.slice_interval)
    lesion = replace(lesion, z=k * volume.slice_interval, first=k * volume.slice_interval - 9.0)
    lesion = replace(lesion, last=k * volume.slice_interval + 9.0, tapers=(9.0, 9.0))
    tube = replace(lesion, first=-math.inf, last=math.inf, drift=(0.3, -0.5))
    ends, goes_on = (replace(volume, lesions=(blob,)) for blob in (lesion, tube))
    assert np.array_equal(render(ends, k), render(goes_on, k))
    bare = render(replace(volume, lesions=()), k + 3)
    assert np.array_equal(render(ends, k + 3), bare)
    assert not np.array_equal(render(goes_on, k + 3), bare)


def test_the_geometry_does_not_tell_lesions_from_vessels():
    """Size, shape and HU: none ranks lesions above the vessels that go from slice to slice, nor below."""
    volumes = [random_volume(index, size=128) for index in range(60)]
    lesions = [lesion for volume in volumes for lesion in volume.lesions]
    vessels = [vessel for volume in volumes for vessel in volume.vessels]
    # Branches are thinner than what they leave, and vessels across the body long.
    tubes = [v for v in vessels if v.drift != (0.0, 0.0) and 1.0 not in (v.tapers if v.last - v.first < 1e9 else ())]
    tubes = [v for v in tubes if v.tapers[0] == v.tapers[1]]
    m, n = len(lesions), len(tubes)
    deviation = math.sqrt((m + n + 1) / (12 * m * n))  # of the area under the ROC curve, for chance
    for feature in (lambda b: b.long, lambda b: b.short / b.long, lambda b: b.hu):
        ranks = np.argsort(np.argsort([feature(b) for b in (*lesions, *tubes)])) + 1
        area = (ranks[:m].sum() - m * (m + 1) / 2) / (m * n)
        assert abs(area - 0.5) < 4 * deviation
    assert 4 * deviation < 0.12


def test_nothing_bright_is_beside_a_lesion():
    for index in range(2):
        volume = random_volume(index, **OPTIONS)
        alone = replace(volume, vessels=())
        for lesion in volume.lesions:
            grown = replace(lesion, long=lesion.long + 2.5, short=lesion.short + 2.5)
            around = replace(volume, lesions=(grown,))
            for k in range(volume.depth):
                near = labels(around, k) > 0
                if not near.any():
                    continue
                assert np.array_equal(render(volume, k)[near], render(alone, k)[near])


def test_vessels_go_on_and_lesions_end(volume):
    for vessel in volume.vessels:
        drawn = np.zeros(volume.shape, dtype=np.float32)
        for k in range(volume.depth):
            draw_blob(drawn[k], vessel, *volume.rows_and_columns(k))
        k = np.flatnonzero(drawn.any(axis=(1, 2)))
        assert (np.diff(k) == 1).all()
        if vessel.drift != (0.0, 0.0):
            whole = (k[-1] - k[0] + 4) * volume.slice_interval * math.hypot(1, *vessel.drift)
            assert whole > 45 or k[0] == 0 or k[-1] == volume.depth - 1
    for number in range(1, len(volume.lesions) + 1):
        k = np.flatnonzero([(labels(volume, k) == number).any() for k in range(volume.depth)])
        assert (k[-1] - k[0]) * volume.slice_interval < 50


def test_the_body_changes_from_head_to_feet():
    volume = random_volume(3, size=96, slice_interval=5.0)
    air = [(render(volume, k)[20:70, 10:86] < -600).mean() for k in range(volume.depth)]
    lungs = np.array(air) - np.median(air)
    assert lungs[: volume.depth // 2].max() > 0.1
    assert lungs[volume.depth // 2 : -6].max() < 0.1
    ends = {random_volume(index, size=64).body.air for index in range(12)}
    assert any(first > 0 for first, _ in ends)
    assert any(last > 0 for _, last in ends)
    empty = next(v for v in (random_volume(i, size=64) for i in range(20)) if v.body.air[0] > v.slice_interval)
    assert render(empty, 0)[:45].max() < -900
    assert render(empty, empty.depth // 2)[:45].max() > 0


def check(path, volume, missing=()):
    """The file has the HU that were drawn, at the same places in the patient."""
    read = read_volume(str(path))
    slices = [k for k in range(volume.depth) if k not in missing]
    assert read.hu.shape == (len(slices), *volume.shape[1:])
    for index, k in enumerate(slices):
        assert np.abs(read.hu[index] - render(volume, k)).max() <= 1
        for column, row in ((0, 0), (volume.width - 1, 5)):
            place = (volume.affine @ [column, row, k, 1])[:3]
            assert np.abs(read.position_of(column, row, index) - place).max() < 0.01
    return read


@pytest.fixture(scope="module")
def small():
    return random_volume(1, size=64, slice_interval=6.0, length=150.0, lesion_size=(20.0, 30.0), seed=5)


@pytest.mark.parametrize(
    ("codes", "how"),
    [
        ("LPS", {}),
        ("RAS", {"dtype": np.float32}),
        ("LAS", {"endian": ">"}),
        ("LPI", {"slope": 0.5}),
        ("PIR", {"dtype": np.float32, "endian": ">"}),
    ],
)
def test_nifti(small, tmp_path, codes, how):
    nibabel = pytest.importorskip("nibabel")
    path = tmp_path / "case.nii.gz"
    write_nifti(str(path), small, codes, **how)
    check(path, small)
    write_labels(str(tmp_path / "labels.nii.gz"), small, codes)
    image, marked = nibabel.load(path), nibabel.load(tmp_path / "labels.nii.gz")
    assert "".join(nibabel.aff2axcodes(image.affine)) == codes
    np.testing.assert_array_equal(image.affine, marked.affine)
    ours = nibabel.as_closest_canonical(marked).get_fdata()[::-1, ::-1, ::-1]  # from right, front and feet
    np.testing.assert_array_equal(ours.transpose(2, 1, 0), label_map(small))


@pytest.mark.parametrize(
    ("how", "note"),
    [
        ({}, None),
        ({"feet_first": True}, None),
        ({"oblique": 7.0}, None),
        ({"tilt": -12.0}, "tilted by 12.0 degrees"),
        ({"localiser": True}, None),
        ({"missing": (5,)}, "12.00 mm between slices, 24.0 mm from the first"),
        ({"doubled": (3,), "feet_first": True}, "1 of 27 slices lie where another does"),
        ({"syntax": "j2k"}, None),
        ({"syntax": "rle", "oblique": -4.0}, None),
    ],
)
def test_dicom(small, tmp_path, how, note):
    pytest.importorskip("pydicom")
    if how.get("syntax") == "j2k":
        pytest.importorskip("openjpeg")
    written = write_dicom(str(tmp_path / "ct"), small, **how)
    read = check(tmp_path / "ct", written, how.get("missing", ()))
    if note is None:
        assert read.notes == ()
    else:
        assert any(note in text for text in read.notes)


def test_dicom_files_are_named_in_no_order_and_the_same_again(small, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    how = {"feet_first": True, "localiser": True, "missing": (4,), "doubled": (4, 9)}
    for folder in ("a", "b"):
        write_dicom(str(tmp_path / folder), small, **how)
    names = sorted(os.listdir(tmp_path / "a"))
    assert len(names) == small.depth - 1 + 1 + 1
    match, mismatch, errors = filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False)
    assert (len(match), mismatch, errors) == (len(names), [], [])
    images = [pydicom.dcmread(tmp_path / "a" / name) for name in names]
    axial = [image for image in images if "LOCALIZER" not in image.ImageType]
    places = [float(image.ImagePositionPatient[2]) for image in axial]
    assert places not in (sorted(places), sorted(places, reverse=True))
    first = min(axial, key=lambda image: image.InstanceNumber)
    assert first.ImagePositionPatient[2] == min(places)
    assert {str(image.PatientName) for image in images} == {"Phantom^Volume 002"}
    assert len({image.StudyInstanceUID for image in images}) == 1
    assert len({image.SeriesInstanceUID for image in images}) == 2


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy, of dicom3tools, is not installed")
def test_dciodvfy_finds_no_error(small, tmp_path):
    pytest.importorskip("pydicom")
    one = replace(small, depth=2)
    for number, how in enumerate(
        ({"localiser": True}, {"feet_first": True, "tilt": 10.0, "syntax": "rle"}, {"oblique": 5.0, "syntax": "j2k"})
    ):
        if how.get("syntax") == "j2k":
            pytest.importorskip("openjpeg")
        write_dicom(str(tmp_path / str(number)), one, **how)
    files = sorted(tmp_path.glob("*/*.dcm"))
    assert len(files) == 7
    for file in files:
        done = subprocess.run(["dciodvfy", file], capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert "CTImage" in said
        assert "Error" not in said, said


def test_png_is_a_deeplesion(small, tmp_path):
    write_png(str(tmp_path), small)
    records = load_deeplesion(str(tmp_path / "DL_info.csv"), str(tmp_path / "Images_png"), "test")
    found = truth(small)["lesions"]
    assert sum(len(record["annotations"]) for record in records) == len(found)
    assert {record["file_name"] for record in records} == {
        str(tmp_path / "Images_png" / "000002_01_01" / f"{lesion['central_slice'] + 1:03d}.png") for lesion in found
    }
    assert records[0]["spacing"] == pytest.approx((small.pixel, small.pixel))
    assert records[0]["slice_interval"] == 6.0
    for k in range(small.depth):
        hu = read_slice(str(tmp_path / "Images_png" / "000002_01_01" / f"{k + 1:03d}.png"))
        assert np.abs(hu - render(small, k)).max() <= 0.5
    read = read_volume(str(tmp_path / "Images_png" / "000002_01_01"))
    assert np.abs(read.hu - np.stack([render(small, k) for k in range(small.depth)])).max() <= 0.5
    # PNG says nothing of the origin.
    np.testing.assert_allclose(read.affine[:3, :3], small.affine[:3, :3], rtol=1e-5, atol=1e-9)
    with pytest.raises(ValueError, match="Expected axial slices, which DeepLesion has, got some turned by 5 degrees"):
        write_png(str(tmp_path / "oblique"), replace(small, oblique=5.0))


def test_ways_of_storing_are_several_and_fit_into_json(small):
    ways = [random_storage(replace(small, seed=(0, index))) for index in range(60)]
    assert json.loads(json.dumps(ways)) == ways
    for name in ways[0]:
        assert len({str(way[name]) for way in ways}) > 1, name
    assert not any(way["oblique"] and way["tilt"] for way in ways)


def test_a_training_series_is_part_of_a_volume_that_is_held_out(tmp_path, monkeypatch):
    options = VolumeOptions(size=96, intervals=(3.0, 5.0), lesion_size=(15.0, 40.0), seed=5)
    seen = set()
    for number, split in ((0, "train"), (1, "train"), (0, "test")):
        patient = len(seen) + 1
        rows = write_training_series(number, split, patient, str(tmp_path), 12.0, options)
        first, last = map(int, rows[0]["Slice_range"].split(","))
        folder = tmp_path / f"{patient:06d}_01_01"
        assert sorted(os.listdir(folder)) == [f"{k:03d}.png" for k in range(first, last + 1)]
        assert first < rows[0]["Key_slice_index"] < last
        seen.add((folder / f"{rows[0]['Key_slice_index']:03d}.png").read_bytes())
    assert len(seen) == 3
    monkeypatch.setattr("a3d_det2.volumes.phantom.deeplesion.ATTEMPTS", 2)
    tiny = replace(options, lesion_size=(5.0, 5.5), size=48)
    with pytest.raises(ValueError, match="Expected a key slice whose lesions are 3 px or more, got none in 2 volumes"):
        write_training_series(0, "train", 1, str(tmp_path), 5.0, tiny)


def test_arguments_that_cannot_be(small, tmp_path):
    with pytest.raises(ValueError, match="Expected one of the syntaxes explicit, j2k, rle, got 'jpeg'"):
        write_dicom(str(tmp_path), small, syntax="jpeg")
    with pytest.raises(ValueError, match="Expected lesions of 400 to 500 mm that fit into a body of"):
        random_volume(0, size=64, lesion_size=(400.0, 500.0))
