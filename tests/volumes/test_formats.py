"""One phantom, stored in every way: the same is found in the same places, and faults of the files are named."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

pytest.importorskip("nibabel")
pytest.importorskip("pydicom")

from a3d_det2.volumes import LinkingRule, list_volumes, read_volume
from a3d_det2.volumes.phantom import random_volume, truth, write_dicom, write_nifti, write_png
from a3d_det2.volumes.predictor import Found, VolumePredictor

SIZE, INTERVAL = 160, 3.0
LESION_HU, SMALLEST = (85, 250), 8  # brighter than muscle and darker than bone; pixels, as noise is less


def blobs(images, slice_interval):
    """A detector of what is as bright as lesions; the score is how bright the whole stack is there."""
    found = []
    for image in images.numpy():
        hu = (image[len(image) // 2] + 50) / 255 * 500 - 200
        inside = ((hu > LESION_HU[0]) & (hu < LESION_HU[1])).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(cv2.medianBlur(inside, 3))
        parts = stats[1:][stats[1:, cv2.CC_STAT_AREA] >= SMALLEST]
        boxes = [(x, y, x + w - 1, y + h - 1) for x, y, w, h, _ in parts.tolist()]
        scores = [(image[:, y1 : y2 + 1, x1 : x2 + 1].mean() + 50) / 255 for x1, y1, x2, y2 in boxes]
        found.append(Found(np.array(boxes, float).reshape(-1, 4), np.array(scores), np.zeros(len(boxes), int), None))
    return found


@pytest.fixture(scope="module")
def phantom():
    """A volume without vessels, which the detector would find as well."""
    volume = random_volume(1, size=SIZE, slice_interval=INTERVAL, length=240.0, lesion_size=(25.0, 40.0))
    return replace(volume, vessels=())


def found_in(path):
    how = {"num_slices": 7, "slice_interval": 2.0, "hu_window": (-200, 300), "progress": False}
    how["rule"] = LinkingRule(iou=0.3)  # the boxes have no margin, so that ends overlap less
    return VolumePredictor(blobs, **how).predict(read_volume(str(path)))


@pytest.fixture(scope="module")
def reference(phantom, tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "ct.nii"
    write_nifti(str(path), phantom)
    found = found_in(path)
    assert_right(found, phantom)
    return found


def assert_right(found, phantom):
    """The lesions of the phantom are found, where they are, and nothing else."""
    lesions = [one for one in truth(phantom)["lesions"] if not one["is_cut"]]
    assert len(found) == len(lesions) > 2
    for lesion in lesions:
        distances = [np.linalg.norm(one.center - lesion["center_lps"]) for one in found]
        nearest = found[int(np.argmin(distances))]
        assert min(distances) < 0.6 * phantom.pixel
        assert nearest.long_mm == pytest.approx(lesion["long_mm"], abs=2 * phantom.pixel)
        assert nearest.volume_mm3 == pytest.approx(lesion["volume_mm3"], rel=0.35)


def compare(found, reference, phantom, shift=(0, 0, 0)):
    """Each has its twin in the reference, within half a voxel and 0.001 of the score."""
    assert len(found) == len(reference)
    voxel = np.array([phantom.pixel, phantom.pixel, INTERVAL])
    theirs = np.array([one.center for one in reference])
    for one in found:
        distance = np.abs(theirs - (one.center + shift)) / voxel
        twin = int(distance.max(axis=1).argmin())
        assert distance[twin].max() < 0.5
        assert one.score == pytest.approx(reference[twin].score, abs=1e-3)
        assert one.long_mm == pytest.approx(reference[twin].long_mm, abs=0.01)


@pytest.mark.parametrize(
    "how",
    [
        {"codes": "RAS"},
        {"codes": "LPS"},
        {"codes": "LAS"},
        {"codes": "PIR"},
        {"codes": "RAS", "endian": ">"},
        {"codes": "RAS", "slope": 0.5},
        {"codes": "LPS", "dtype": np.float32},
    ],
)
def test_nifti(phantom, reference, tmp_path, how):
    write_nifti(str(tmp_path / "ct.nii.gz"), phantom, **how)
    compare(found_in(tmp_path / "ct.nii.gz"), reference, phantom)


@pytest.mark.parametrize("how", [{}, {"feet_first": True}, {"syntax": "j2k"}, {"syntax": "rle"}, {"localiser": True}])
def test_dicom(phantom, reference, tmp_path, how):
    write_dicom(str(tmp_path / "ct"), phantom, **how)
    compare(found_in(tmp_path / "ct"), reference, phantom)


def test_png(phantom, reference, tmp_path):
    write_png(str(tmp_path), phantom)
    (folder,) = (tmp_path / "Images_png").iterdir()
    found = found_in(folder)
    shift = phantom.affine[:3, 3]  # a PNG says not where it lies
    compare(found, reference, phantom, shift)


@pytest.mark.parametrize(
    ("how", "note"),
    [
        ({"missing": [30]}, "6.00 mm between slices, 87.0 mm from the first; elsewhere it is 3.00 mm."),
        ({"doubled": [30]}, "1 of 82 slices lie where another does; the first is taken."),
        ({"tilt": 12.0}, "The gantry was tilted by 12.0 degrees: slices are shifted against each other."),
        ({"oblique": 5.0}, None),
        ({"localiser": True}, None),
    ],
)
def test_faults(phantom, tmp_path, how, note):
    stored = write_dicom(str(tmp_path / "ct"), phantom, **how)
    volume = read_volume(str(tmp_path / "ct"))
    assert volume.notes == ((note,) if note else ())
    assert_right(found_in(tmp_path / "ct"), stored)
    if "localiser" in how:
        assert [one.problem for one in list_volumes(str(tmp_path / "ct"))] == ["", "it is a localiser"]
