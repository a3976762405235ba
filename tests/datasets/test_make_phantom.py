"""make_phantom.py with volumes; tests/data/test_phantom.py has the phantom without them."""

import json
import subprocess

import numpy as np
import pytest

from a3d_det2.data import load_deeplesion
from a3d_det2.data.deeplesion import load_named
from a3d_det2.data.slices import read_slice
from tests.scripts import without_detectron2

SMALL = ["--size", "64", "--slice-interval", "6", "--lesion-size", "20", "40"]


def make(repo, output, *arguments, code=0):
    command = without_detectron2("datasets/make_phantom.py", "--output", output, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo)
    assert done.returncode == code, done.stderr
    return done


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_volumes_and_their_truth(repo, tmp_path, kind):
    pytest.importorskip("pydicom")
    nibabel = pytest.importorskip("nibabel")
    from a3d_det2.volumes import read_volume

    done = make(repo, tmp_path, "--volumes", "2", "--format", kind, "--seed", "2", *SMALL)
    total = 0
    for name in ("volume_001", "volume_002"):
        truth = json.loads((tmp_path / "truth" / f"{name}.json").read_text())
        volume = read_volume(str(tmp_path / (f"{name}.nii.gz" if kind == "nifti" else name)))
        marked = nibabel.load(tmp_path / "truth" / f"{name}_labels.nii.gz")  # LPS, from feet to head
        numbers = np.asarray(marked.dataobj).transpose(2, 1, 0)[::-1]
        corner = (marked.affine @ [0, 0, marked.shape[2] - 1, 1])[:3] * [-1, -1, 1]
        assert (truth["name"], truth["format"], truth["slice_interval"]) == (name, kind, 6.0)
        assert truth["shape"] == list(numbers.shape)
        assert len(volume.hu) == truth["shape"][0] - len(truth.get("missing", ()))
        assert volume.spacing == pytest.approx(truth["spacing"], rel=1e-5)
        np.testing.assert_allclose(corner, np.array(truth["affine"])[:3, 3], atol=1e-3)
        np.testing.assert_allclose(volume.affine[:3, 3], corner, atol=1e-3)
        for lesion in truth["lesions"]:
            assert (numbers == lesion["number"]).sum() == lesion["voxels"]
            # In the middle it is as bright as lesions are.
            x, y, z = np.linalg.solve(volume.affine[:3, :3], np.array(lesion["center_lps"]) - volume.affine[:3, 3])
            if not truth.get("missing") and not truth["tilt"]:  # else slices do not lie where the affine says
                assert 70 < volume.hu[round(z), round(y), round(x)] < 200
        if kind == "nifti":
            image = nibabel.load(tmp_path / f"{name}.nii.gz")
            assert "".join(nibabel.aff2axcodes(image.affine)) == "LPS"
        total += len(truth["lesions"])
    assert f"Wrote 2 volumes with {total} lesions" in done.stdout


def test_volumes_as_png_are_each_a_deeplesion(repo, tmp_path):
    pytest.importorskip("nibabel")
    make(repo, tmp_path, "--volumes", "1", "--format", "png", *SMALL)
    root = tmp_path / "volume_001"
    records = load_deeplesion(str(root / "DL_info.csv"), str(root / "Images_png"), "test")
    truth = json.loads((tmp_path / "truth" / "volume_001.json").read_text())
    assert sum(len(record["annotations"]) for record in records) == len(truth["lesions"])


def test_the_number_of_workers_changes_nothing(repo, tmp_path):
    pytest.importorskip("nibabel")
    for workers in ("1", "2"):
        make(repo, tmp_path / workers, "--volumes", "2", "--workers", workers, *SMALL)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    again = make(repo, tmp_path / "1", "--volumes", "2", *SMALL, code=1)
    assert "truth exists: remove" in again.stderr


def test_a_training_set_from_volumes(repo, tmp_path, monkeypatch):
    arguments = ["--from-volumes", "--train", "6", "--val", "2", "--test", "3", "--size", "96"]
    make(repo, tmp_path / "phantom", *arguments, "--lesion-size", "15", "40", "--context", "8")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    patients = []
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        records = load_named(f"phantom_{split}")
        assert len(records) == count
        patients += [record["patient"] for record in records]
        for record in records:
            hu = read_slice(record["file_name"])
            assert hu.shape == (record["height"], record["width"]) == (96, 96)
            for annotation in record["annotations"]:
                points = np.array(annotation["recist"])
                x, y = np.rint(points.mean(axis=0)).astype(int)
                assert hu[y, x] > 70
                # 5 px around the RECIST axes, and darker there, unless a vessel or a bone is.
                box = np.concatenate([points.min(axis=0) - 5, points.max(axis=0) + 5])
                np.testing.assert_allclose(annotation["bbox"], np.clip(box, 0, 96), atol=1e-3)
                left, top, right, bottom = np.rint(annotation["bbox"]).astype(int)
                edges = [hu[top, left:right], hu[bottom, left:right], hu[top:bottom, left], hu[top:bottom, right]]
                assert np.median(np.concatenate(edges)) < 90
    assert len(set(patients)) == 11


def test_only_one_source(repo, tmp_path):
    done = make(repo, tmp_path, "--from-volumes", "--volumes", "2", code=2)
    assert "not allowed with argument" in done.stderr
