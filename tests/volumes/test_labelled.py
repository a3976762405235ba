"""Label maps whose lesions are known, however they are stored."""

import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel")

from a3d_det2.volumes import UnreadableVolume
from a3d_det2.volumes.labelled import read_labels
from a3d_det2.volumes.phantom import random_volume, truth, write_labels


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR"])
def test_the_truth_of_the_phantom(tmp_path, codes):
    phantom = random_volume(3, size=96, slice_interval=2.0, length=160.0, lesion_size=(15.0, 40.0))
    write_labels(str(tmp_path / "labels.nii.gz"), phantom, codes=codes)
    read = read_labels(str(tmp_path / "labels.nii.gz"))
    stored = np.asarray(nibabel.load(tmp_path / "labels.nii.gz").dataobj)
    known = dict(enumerate(truth(phantom)["lesions"], 1))
    assert set(read.numbers) <= set(known)
    assert len(read.numbers) > 2
    assert stored.shape == read.shape
    for number, lesion, box, key, center in zip(
        read.numbers, read.lesions, read.boxes, read.key_boxes, read.centers, strict=True
    ):
        places = np.argwhere(stored == number)
        np.testing.assert_array_equal(box, np.concatenate([places.min(axis=0), places.max(axis=0)]))
        np.testing.assert_allclose(center, places.mean(axis=0), atol=1e-6)
        assert key[read.slice_axis] == key[3 + read.slice_axis]
        assert lesion.number == number
        if not known[number]["is_cut"]:
            where = (np.append(center, 1) @ read.affine.T)[:3] * [-1, -1, 1]
            assert np.abs(where - known[number]["center_lps"]).max() < phantom.pixel
            assert lesion.volume_mm3 == pytest.approx(known[number]["volume_mm3"], rel=0.1)
            assert lesion.long_mm == pytest.approx(known[number]["long_mm"], abs=2 * phantom.pixel)
    np.testing.assert_array_equal(read.labels(), stored)


def save(path, values, affine=None):
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2, 3, 1]) if affine is None else affine), path)
    return str(path)


def test_no_lesion_and_gaps_between_numbers(tmp_path):
    labels = np.zeros((40, 40, 9), np.int16)
    read = read_labels(save(tmp_path / "a.nii", labels))
    assert (len(read.numbers), read.boxes.shape, read.centers.shape) == (0, (0, 6), (0, 3))
    labels[3:6, 4:9, 2] = 7
    read = read_labels(save(tmp_path / "b.nii", labels))
    assert read.numbers.tolist() == [7]
    assert read.boxes.tolist() == read.key_boxes.tolist() == [[3, 4, 2, 5, 8, 2]]
    assert read.lesions[0].volume_mm3 == pytest.approx(15 * 12)


def test_slices_without_the_label_count_nothing(tmp_path):
    """Two patches of one lesion far apart: what is between them is not its."""
    labels = np.zeros((40, 40, 12), np.int16)
    labels[3:5, 4:6, 2], labels[20:30, 20:30, 8] = 1, 1
    read = read_labels(save(tmp_path / "a.nii", labels))
    (lesion,) = read.lesions
    assert lesion.volume_mm3 == pytest.approx(104 * 12)
    assert read.centers[0].tolist() == pytest.approx((np.argwhere(labels) * 1.0).mean(axis=0).tolist())
    assert read.key_boxes.tolist() == [[20, 20, 8, 29, 29, 8]]


def test_oblique_label_maps_have_whole_boxes(tmp_path):
    labels = np.zeros((40, 40, 12), np.int16)
    for k in range(11):
        labels[3 * k : 3 * k + 2, 5:9, k] = k + 1
    c, s = np.cos(np.radians(3)), np.sin(np.radians(3))
    turned = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ np.diag([-2.0, 2, 4, 1])
    tilted = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]]) @ turned
    read = read_labels(save(tmp_path / "a.nii", labels, tilted))
    assert (read.boxes == np.rint(read.boxes)).all()
    assert (read.key_boxes == read.boxes).all()
    assert read.key_boxes[4].tolist() == [12, 5, 4, 13, 8, 4]


def test_what_is_no_label_map(tmp_path):
    huge = np.full((40, 40, 9), 2**30, np.int32)
    for values in (np.full((40, 40, 9), 0.5, np.float32), np.full((40, 40, 9), -1, np.int16), huge):
        with pytest.raises(UnreadableVolume, match="expected labels, whole numbers from 0 to 65535, got other values"):
            read_labels(save(tmp_path / "a.nii", values))
    (tmp_path / "b.nii").write_text("Dear colleague")
    with pytest.raises(UnreadableVolume, match="expected a NIfTI file"):
        read_labels(str(tmp_path / "b.nii"))
