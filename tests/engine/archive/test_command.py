"""a3d-archive with a model: scan, predict, merge."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("nibabel")
pytest.importorskip("pydicom")

from a3d_det2.engine.archive.commands import main
from a3d_det2.engine.archive.prediction import Prediction
from a3d_det2.volumes.phantom import random_volume, write_dicom, write_nifti, write_png
from tests.engine.conftest import TINY
from tests.engine.test_predictor import make_config, save_weights

SIZES = ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64"]


@pytest.fixture(scope="session")
def phantom():
    return random_volume(3, size=64, slice_interval=6.0, length=120.0, lesion_size=(20.0, 40.0))


@pytest.fixture(scope="session")
def cts(phantom, tmp_path_factory):
    """Three NIfTI, one that is cut off, a DICOM series twice, and two whose slices are in several folders."""
    folder = tmp_path_factory.mktemp("cts")
    for name in ("a", "b/c"):
        os.makedirs((folder / name).parent, exist_ok=True)
        write_nifti(str(folder / f"{name}.nii.gz"), phantom)
    (folder / "cut.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:20000])
    (folder / "none.nii.gz").write_bytes(b"no")
    write_dicom(str(folder / "dicom" / "one"), phantom)
    shutil.copytree(folder / "dicom" / "one", folder / "dicom" / "copy")
    write_dicom(str(folder / "scattered"), random_volume(4, size=64, slice_interval=6.0, length=120.0))
    for number, path in enumerate(sorted((folder / "scattered").iterdir())):
        (folder / "scattered" / f"slice{number}").mkdir()
        path.rename(folder / "scattered" / f"slice{number}" / path.name)
    write_dicom(str(folder / "halves"), random_volume(5, size=64, slice_interval=6.0, length=120.0))
    for number, path in enumerate(sorted((folder / "halves").iterdir())):
        (folder / "halves" / str(number % 2)).mkdir(exist_ok=True)
        path.rename(folder / "halves" / str(number % 2) / path.name)
    return folder


@pytest.fixture
def run(engine, tmp_path, capfd):
    """Runs a command; returns what it printed, and its status."""
    save_weights(engine, make_config(engine, *SIZES), tmp_path / "model.pth")
    name = "detectron2" if hasattr(engine, "Trainer") else "torchvision"

    def run(command, *arguments, opts=()):
        if command == "predict":
            arguments = [*arguments, "--engine", name, "--weights", tmp_path / "model.pth", "--min-score", "0.3"]
            arguments += ["--link-iou", "0.2", "--without", "viewer,pictures", "--config-file", "quick/a3d_7slice.yaml"]
            arguments += [*TINY, *SIZES, *opts]
        status = 0
        try:
            main([command, *map(str, arguments)])
        except SystemExit as error:
            status = error.code
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err
        return printed.out + printed.err, status

    return run


def rows(path):
    return list(csv.DictReader(Path(path).open()))


ONE_ENGINE = pytest.mark.parametrize("engine", ["torchvision_loop"], indirect=True)


def test_scan_predict_merge(run, cts, tmp_path):
    manifest, output, table = tmp_path / "archive.csv", tmp_path / "out", tmp_path / "lesions.csv"
    printed, status = run("scan", cts, "--manifest", manifest, "--workers", "1")
    assert status == 0
    assert "left out: 1 x expected a NIfTI file, got an unreadable one" in printed
    assert f"6 volumes -> {manifest}" in printed
    found = {row["id"]: row for row in rows(manifest)}
    uids = [name for name in found if name[0].isdigit()]
    assert sorted(found.keys() - set(uids)) == ["a", "b/c", "cut"]
    assert found["b/c"]["path"] == str(cts / "b" / "c.nii.gz")
    folders = {found[uid]["path"] for uid in uids}
    assert folders == {str(cts / "scattered"), str(cts / "dicom" / "copy"), str(cts / "halves")}
    assert all(found[uid]["series"] == uid for uid in uids)

    printed, status = run("predict", "--manifest", manifest, "--output", output, "--workers", "2")
    assert (status, "6 volumes: 5 done, 1 errors, 0 were done before." in printed) == (0, True)
    assert "cut: UnreadableVolume: " in printed
    (a,) = output.glob("items/*/a/lesions.json")
    (b,) = output.glob("items/*/b%2Fc/lesions.json")
    assert a.read_bytes() == b.read_bytes()
    lesions = json.loads(a.read_text())["lesions"]
    assert {path.name for path in a.parent.iterdir()} == {
        *("lesions.json", "lesions.csv", "lesions.nii.gz", "lesions.mrk.json", "item.json")
    }

    printed, status = run("merge", "--manifest", manifest, "--output", output, "--table", table)
    assert (status, "6 volumes: 5 done with" in printed, "1 errors, 0 missing" in printed) == (0, True, True)
    items = {row["volume"]: row for row in rows(tmp_path / "lesions.items.csv")}
    assert items.keys() == found.keys()
    assert (items["cut"]["status"], items["cut"]["error"]) == ("error", "UnreadableVolume")
    assert sum(int(row["lesions"] or 0) for row in items.values()) == len(rows(table))
    scores = [float(row["score"]) for row in rows(table) if row["volume"] == "b/c"]
    assert scores == [one["score"] for one in lesions]


@ONE_ENGINE
def test_merge_names_what_is_missing(run, cts, tmp_path):
    manifest, output, table = tmp_path / "archive.csv", tmp_path / "out", tmp_path / "lesions.csv"
    merge = "merge", "--manifest", manifest, "--output", output, "--table"
    manifest.write_text(f"id,path\na,{cts}/a.nii.gz\nb,{cts}/nowhere.nii.gz\nc,{cts}/b/c.nii.gz\n")
    assert "expected a folder that a3d-archive predict has written" in run(*merge, table)[0]
    run("predict", "--manifest", manifest, "--output", output, "--shard", "1/3")
    printed, status = run(*merge, table)
    assert (status, "3 volumes: 1 done with" in printed, "missing: b, c" in printed) == (1, True, True)
    printed, status = run("predict", "--manifest", manifest, "--output", output)
    assert f"b: FileNotFoundError: {cts}/nowhere.nii.gz: no such file or folder" in printed
    assert run(*merge, table)[1] == 0
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    assert run(*merge, tmp_path / "lesions.parquet")[1] == 0
    for name in ("lesions", "lesions.items"):
        one, other = pandas.read_csv(tmp_path / f"{name}.csv"), pandas.read_parquet(tmp_path / f"{name}.parquet")
        assert list(one) == list(other)
        assert len(one) == len(other) > 0
        for column in one:
            assert (one[column].isna() == other[column].isna()).all()
            assert (one[column].dropna() == other[column].dropna()).all()
    assert "expected the name of a .csv or .parquet file" in run(*merge, tmp_path / "lesions.xlsx")[0].lower()


@ONE_ENGINE
def test_another_config_is_another_run(run, cts, tmp_path):
    manifest, output = tmp_path / "archive.csv", tmp_path / "out"
    manifest.write_text(f"id,path\na,{cts}/a.nii.gz\n")
    predict = "predict", "--manifest", manifest, "--output", output
    assert "1 done" in run(*predict)[0]
    assert "0 done, 0 errors, 1 were done before" in run(*predict, "--device", "cpu", "--batch-size", "2")[0]
    printed = run(*predict, "--dtype", "bfloat16")[0]
    assert "dtype: 'float32' -> 'bfloat16'" in printed
    assert "1 of them had results of another config" in printed
    printed = run(*predict, opts=["INPUT.HU_WINDOW", "[-1000,1000]"])[0]
    assert "config_sha256: " in printed
    assert "dtype: 'bfloat16' -> 'float32'" in printed


@ONE_ENGINE
def test_bad_input(run, cts, tmp_path):
    manifest, output = tmp_path / "archive.csv", tmp_path / "out"
    manifest.write_text(f"id,path\na,{cts}/a.nii.gz\na,{cts}/b.nii.gz\n")
    predict = "predict", "--manifest", manifest, "--output", output
    for arguments, message in (
        ((), "expected each id once, got 'a' again"),
        (("--manifest", tmp_path / "none.csv"), "none.csv"),
        (("--shard", "3/2"), "expected a shard"),
        (("--workers", "0"), "expected a whole number from 1 on, got '0'"),
        (("--timeout", "-1"), "expected seconds above 0 and below 2e6"),
        (("--mint-uids",), "expected --dicom with"),
    ):
        printed, status = run(*predict, *arguments)
        assert (status, message in printed) == (2, True), printed
    assert not output.exists()
    manifest.write_text(f"id,path\na,{cts}/a.nii.gz\n")
    printed, status = run(*predict, opts=["MODEL.A3D.OPERATOR", "b3d"])
    assert (status, "MODEL.A3D.OPERATOR" in printed) == (2, True)
    output.write_text("a file")
    printed, status = run(*predict)
    assert (status, "the results cannot be written" in printed) == (2, True)
    (tmp_path / "empty").mkdir()
    for name, message in (("nowhere", "no such folder"), ("empty", "got none that can be used")):
        printed, status = run("scan", tmp_path / name, "--manifest", manifest)
        assert (status, message in printed) == (2, True)


def test_what_a_scan_leaves_out(cts, tmp_path, capfd):
    """Names that are no ids, and what an archive has written itself."""
    whole = (cts / "a.nii.gz").read_bytes()
    names = (b"good", b"", b"\xff", "影像".encode() * 20, b"lock")
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name + b".nii.gz"), "wb") as f:
            f.write(whole)
    for place in ("parts/1-of-1-h-1-x/items/v", "items/3f/v"):
        (tmp_path / "results" / place).mkdir(parents=True)
        (tmp_path / "results" / place / "lesions.nii.gz").write_bytes(whole)
    (tmp_path / "results" / "run.json").write_text('{"format": "a3d_det2 archive"}')
    main(["scan", str(tmp_path), "--manifest", str(tmp_path / "archive.csv"), "--workers", "1"])
    printed = capfd.readouterr().out
    assert sorted(row["id"] for row in rows(tmp_path / "archive.csv")) == ["good", "lock"]
    for problem in ("an id and a path", "names that are text", "an id of at most 200 letters as a folder has them"):
        assert f"left out: 1 x expected {problem}" in printed


@ONE_ENGINE
def test_a_table_is_not_the_manifest(run, cts, tmp_path):
    manifest, output = tmp_path / "archive.csv", tmp_path / "out"
    manifest.write_text(f"id,path\na,{cts}/a.nii.gz\n")
    run("predict", "--manifest", manifest, "--output", output)
    printed, status = run("merge", "--manifest", manifest, "--output", output, "--table", manifest)
    assert (status, "expected a table that does not take the place of" in printed.lower()) == (2, True)
    assert manifest.read_text() == f"id,path\na,{cts}/a.nii.gz\n"
    manifest.write_text(f"id,path\na,{cts}/a.nii.gz\na,{cts}/a.nii.gz\n")
    printed, status = run("merge", "--manifest", manifest, "--output", output, "--table", tmp_path / "l.csv")
    assert (status, "expected each id once" in printed) == (2, True)


@ONE_ENGINE
def test_png_and_several_volumes_of_a_folder(run, phantom, cts, tmp_path):
    write_png(str(tmp_path / "set"), phantom)
    shutil.copytree(cts / "dicom" / "one", tmp_path / "set" / "dicom")
    manifest, output = tmp_path / "archive.csv", tmp_path / "out"
    assert "2 volumes" in run("scan", tmp_path / "set", "--manifest", manifest)[0]
    assert "2 done, 0 errors" in run("predict", "--manifest", manifest, "--output", output)[0]
    manifest.write_text(f"id,path\nall,{tmp_path}/set\n")
    printed = run("predict", "--manifest", manifest, "--output", output)[0]
    assert "all: UnreadableVolume: " in printed
    assert "expected one volume, or the UID or name of one as series, got 2 of these" in printed


@ONE_ENGINE
def test_out_of_memory_once(engine, cts, tmp_path, monkeypatch):
    """A batch that needs too much memory is halved for that volume."""
    from a3d_det2.engine.archive.commands import parse_args
    from a3d_det2.engine.archive.manifest import Item
    from a3d_det2.engine.archive.work import How, Worker

    save_weights(engine, make_config(engine, *SIZES), tmp_path / "model.pth")
    arguments = ["--config-file", "quick/a3d_7slice.yaml", "--weights", tmp_path / "model.pth", "--batch-size", "4"]
    arguments += ["--engine", "torchvision", "--without", "viewer,pictures", *TINY, *SIZES]
    args = parse_args(["predict", "--manifest", "a.csv", "-o", "out", *map(str, arguments)])
    processor = Prediction(args).build(0)
    detector, sizes, limit = processor._predictor.detector, [], 2

    def small_gpu(images, interval):
        sizes.append(len(images))
        if len(images) > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return detector(images, interval)

    processor._predictor.detector = small_gpu
    worker = Worker(Prediction(args), processor, How(str(tmp_path / "out")))
    items = [Item(name, str(cts / "a.nii.gz")) for name in ("1", "2")]
    assert [record["status"] for record in worker.records(items)] == ["done", "done"]
    assert sizes.count(4) == 2
    assert processor._predictor.batch_size == 4
    limit = 1
    (record,) = worker.records([items[0]._replace(id="3")])
    assert record["error"]["class"] == "RuntimeError"
    worker.close()
