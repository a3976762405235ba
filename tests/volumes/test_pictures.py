import dataclasses

import cv2
import numpy as np
import pytest

from a3d_det2.volumes.lesion import LesionSlice, Mask
from a3d_det2.volumes.pictures import window_of, write_pictures
from tests.volumes.test_viewer import example, make_lesion
from tests.volumes.volumes import make_volume

SIDE = 100  # mm of a panel


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "new"
    volume, lesions = example()
    return write_pictures(str(folder), volume, lesions), folder, volume, lesions


def panels(path):
    """The three pictures, each (h, w, 3) RGB and square."""
    picture = cv2.imread(str(path))[:, :, ::-1].astype(int)
    side = round(picture.shape[1] * (1 / 3 - 0.01))
    bottom = round(picture.shape[0] * (1 - 0.012))
    lefts = [round(picture.shape[1] * (0.005 + i / 3)) for i in range(3)]
    return [picture[bottom - side : bottom, left : left + side] for left in lefts]


def orange_box(panel, side=SIDE):
    """(4,) mm XYXY from the corner of a panel, of the lines around a lesion."""
    rows, columns = np.nonzero((panel[:, :, 0] > 180) & (panel[:, :, 2] < 90))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * side / len(panel)


def grey(panel, x, y, side=SIDE):
    """Mean of 3 x 3 mm, 14 pixels, at a place in mm from the corner."""
    column, row = (int(mm / side * len(panel)) for mm in (x, y))
    return panel[row - 7 : row + 7, column - 7 : column + 7].mean()


def test_a_picture_of_each(written, tmp_path):
    paths, folder, volume, lesions = written
    assert paths == [str(folder / f"lesion_00{i}.png") for i in (1, 2, 3)]
    assert sorted(map(str, folder.iterdir())) == paths
    assert write_pictures(str(tmp_path), volume, lesions, most=1) == [str(tmp_path / "lesion_001.png")]
    assert (tmp_path / "lesion_001.png").read_bytes() == (folder / "lesion_001.png").read_bytes()
    assert write_pictures(str(tmp_path / "none"), volume, []) == []


def test_names_nobody(written):
    content = (written[1] / "lesion_001.png").read_bytes()
    assert not any(text in content for text in (b"Nobody", b"1.2.840", b"4711"))


@pytest.mark.parametrize(
    ("number", "sizes"),
    [
        # mm along and down in the axial, coronal and sagittal plane. Outlines of masks lie a quarter of a pixel within.
        (1, [(17 * 1.5 - 0.75, 13 * 2 - 1), (17 * 1.5 - 0.75, 7 * 3 - 1.5), (13 * 2 - 1, 7 * 3 - 1.5)]),
        (2, [(16 * 1.5, 12 * 2), (16 * 1.5, 3 * 3), (12 * 2, 3 * 3)]),
        (3, [(10 * 1.5, 8 * 2), (10 * 1.5, 3), (8 * 2, 3)]),
    ],
)
def test_lesion_in_the_middle_in_mm(written, number, sizes):
    for panel, size in zip(panels(written[0][number - 1]), sizes, strict=True):
        box = orange_box(panel)
        assert box[2:] - box[:2] == pytest.approx(size, abs=1)  # a line is 0.6 mm wide
        assert (box[2:] + box[:2]) / 2 == pytest.approx(50, abs=0.5)


def test_window_is_that_of_the_surroundings(written):
    paths, _, volume, lesions = written
    assert [window_of(volume, lesion) for lesion in lesions] == ["Soft tissue", "Lung", "Soft tissue"]
    for panel in panels(paths[0]):
        assert grey(panel, 50, 50) == pytest.approx((140 + 160) / 400 * 255, abs=8)
        assert grey(panel, 80, 50) == pytest.approx((40 + 160) / 400 * 255, abs=8)
    axial, coronal, sagittal = panels(paths[1])
    for panel in (axial, coronal, sagittal):
        assert grey(panel, 50, 50) == pytest.approx((20 + 1350) / 1500 * 255, abs=8)
        assert grey(panel, 70, 50) == pytest.approx((1350 - 850) / 1500 * 255, abs=8)
    # The lung begins at slice 35, 18 mm above the middle of slice 41, and soft tissue ends there.
    assert grey(coronal, 50, 50 - 22) == pytest.approx((1350 + 40) / 1500 * 255, abs=8)


def test_scale_bar_and_what_is_outside(written):
    axial, coronal, _ = panels(written[0][2])  # in the first corner of the slice
    bar = axial[round(0.95 * len(axial))]
    white = np.flatnonzero(bar.min(axis=1) > 220)
    assert (white[-1] - white[0] + 1) / len(axial) * SIDE == pytest.approx(20, abs=0.5)
    assert grey(axial, 30, 30) == 0
    # The first slice is the fifth above.
    assert grey(coronal, 55, 50 - 15) == pytest.approx(200 / 400 * 255, abs=8)
    assert grey(coronal, 55, 50 - 19) == 0


def test_large_lesions_fit(tmp_path):
    volume = make_volume(np.full((4, 64, 64), 40), spacing=(4, 4), interval=5)
    lesion = make_lesion(1, 0.5, [LesionSlice(1, np.array([10.0, 10, 39, 29]), 0.5, None)], 1, (120, 80))
    axial, _, _ = panels(write_pictures(str(tmp_path), volume, [lesion])[0])
    box = orange_box(axial, side=240)
    assert box[2:] - box[:2] == pytest.approx((120, 80), abs=2)


def test_tilted_gantry_shears_nothing(tmp_path):
    """A rod along the normal goes straight down, and the outline of a mask around a piece of it does."""
    rows = 40 - np.arange(40)  # of its middle on each slice; each slice is shifted by 2 mm against the one before
    hu = np.full((40, 64, 64), 40)
    slices = []
    for index, row in enumerate(rows):
        hu[index, max(row - 2, 0) : row + 3, 30:35] = 200
        if 15 <= index <= 20:
            mask = Mask(row - 2, 30, np.ones((5, 5), dtype=bool))
            slices.append(LesionSlice(index, np.array([30.0, row - 2, 34, row + 2]), 0.5, mask))
    volume = make_volume(hu, spacing=(2, 2), interval=3, tilt=(0, 2))
    lesion = make_lesion(1, 0.5, slices, 17, (10, 10))
    lesion = dataclasses.replace(lesion, center_voxel=np.array([32, rows[17], 17.0]))
    _, coronal, sagittal = panels(write_pictures(str(tmp_path), volume, [lesion])[0])
    for panel in (coronal, sagittal):
        box = orange_box(panel)
        assert box[2:] - box[:2] == pytest.approx((9, 6 * 3 - 1.5), abs=2)  # 19 along if it were sheared
        for y in (20, 35, 50, 65, 80):
            assert grey(panel, 50, y) > 200
            assert grey(panel, 40, y) < 150
            assert grey(panel, 60, y) < 150


def test_an_empty_mask_is_a_box(tmp_path):
    volume, _ = example()
    one = LesionSlice(30, np.array([60.0, 40, 69, 44]), 0.5, Mask(40, 60, np.zeros((5, 10), dtype=bool)))
    pictures = panels(write_pictures(str(tmp_path), volume, [make_lesion(1, 0.5, [one], 30, (15, 10))])[0])
    for panel, size in zip(pictures, [(15, 10), (15, 7.5), (10, 7.5)], strict=True):  # slices are missing above
        box = orange_box(panel)
        assert box[2:] - box[:2] == pytest.approx(size, abs=1)
