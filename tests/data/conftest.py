import csv
import os

import numpy as np
import pytest

from a3d_det2.data.phantom import COLUMNS
from a3d_det2.data.png import write_png

ROW = {
    "File_name": "000001_02_03_014.png",
    "Patient_index": "1",
    "Study_index": "2",
    "Series_ID": "3",
    "Key_slice_index": "14",
    "Measurement_coordinates": "21, 31, 41, 31, 31, 26, 31, 36",
    "Bounding_boxes": "16, 21, 46, 41",
    "Lesion_diameters_Pixel_": "20, 10",
    "Normalized_lesion_location": "0.4, 0.3, 0.3",
    "Coarse_lesion_type": "5",
    "Possibly_noisy": "0",
    "Slice_range": "8, 23",
    "Spacing_mm_px_": "0.7, 0.8, 5",
    "Image_size": "512, 256",
    "DICOM_windows": "-175, 275",
    "Patient_gender": "F",
    "Patient_age": "NaN",
    "Train_Val_Test": "3",
}


@pytest.fixture
def write_csv(tmp_path):
    def write(*changes, columns=COLUMNS):
        path = tmp_path / "DL_info.csv"
        with open(path, "w", newline="") as f:
            writer = csv.DictWriter(f, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows({**ROW, **change} for change in changes)
        return str(path)

    return write


@pytest.fixture
def write_slice(tmp_path):
    """Write slices of a series under tmp_path/Images_png; returns the path."""

    def write(number, hu=0, series="000001_02_03", shape=(6, 8)):
        folder = tmp_path / "Images_png" / series
        os.makedirs(folder, exist_ok=True)
        image = np.broadcast_to(np.asarray(hu), shape)
        write_png(folder / f"{number:03d}.png", (image + 32768).astype(np.uint16))
        return str(folder / f"{number:03d}.png")

    return write
