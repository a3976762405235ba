import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest

pytest.importorskip("blosc2")

from pycocotools import mask as coco_mask

from a3d_det2.data import load_deeplesion
from a3d_det2.data.preparation import Journal
from tests.damage import Dataset, truncate


@pytest.fixture(scope="module")
def downloads(phantom_root, tmp_path_factory):
    """A phantom as DeepLesion is downloaded: zip files and the csv."""
    folder = tmp_path_factory.mktemp("downloads")
    phantom = phantom_root / "phantom"
    shutil.copy(phantom / "DL_info.csv", folder)
    archives = [zipfile.ZipFile(folder / f"Images_png_{i:02d}.zip", "w") for i in (1, 2, 3)]
    for i, series in enumerate(sorted((phantom / "Images_png").iterdir())):
        for path in sorted(series.iterdir()):
            archives[i % 3].write(path, f"Images_png/{series.name}/{path.name}")
    for archive in archives:
        archive.close()
    return folder


def command(repo, *options):
    return [sys.executable, repo / "datasets" / "prepare_deeplesion.py", *options]


def prepare(repo, *options):
    return subprocess.run(command(repo, *options), capture_output=True, text=True, cwd=repo)


def content(root):
    """Path -> hash of every file below a folder."""
    files = [os.path.join(a, name) for a, _, names in os.walk(root, followlinks=True) for name in names]
    return {os.path.relpath(path, root): hashlib.sha256(open(path, "rb").read()).hexdigest() for path in sorted(files)}


@pytest.fixture(scope="module")
def prepared(downloads, tmp_path_factory, repo):
    """Prepared from zip files by one worker, undisturbed."""
    root = tmp_path_factory.mktemp("prepared") / "deeplesion"
    done = prepare(repo, "--source", downloads, "--output", root, "--pack", "--workers", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Weak masks: " in done.stdout
    assert "Series packed: 22 yes" in done.stdout
    return root


@pytest.fixture
def copy(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "deeplesion")
    return tmp_path / "deeplesion"


def test_everything_is_there(prepared, phantom_root):
    names = {"DL_info.csv", "Images_png", "Images_packed", "weak_masks.json", "check.json", "prepare.jsonl"}
    assert set(os.listdir(prepared)) == names
    assert content(prepared / "Images_png") == content(phantom_root / "phantom" / "Images_png")
    assert len(os.listdir(prepared / "Images_packed")) == 22
    assert json.loads((prepared / "check.json").read_text())["can_train"]
    table, masks = str(prepared / "DL_info.csv"), str(prepared / "weak_masks.json")
    for split in ("train", "val", "test"):
        for record in load_deeplesion(table, "", split, mask_path=masks):
            for lesion in record["annotations"]:
                x1, y1, x2, y2 = lesion["bbox"]
                mx, my, width, height = coco_mask.toBbox(lesion["segmentation"])
                assert x1 - 0.5 <= mx < mx + width <= x2 + 1.5
                assert y1 - 0.5 <= my < my + height <= y2 + 1.5


def test_folders_and_several_workers_give_the_same_files(prepared, phantom_root, tmp_path, repo):
    done = prepare(repo, "--source", phantom_root / "phantom", "--output", tmp_path / "d", "--pack", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert os.path.islink(tmp_path / "d" / "Images_png" / "000001_01_01")  # not copied
    assert content(tmp_path / "d") == content(prepared)


def test_a_second_run_changes_nothing(copy, repo):
    before, packed = content(copy), copy / "Images_packed" / "000001_01_01.b2nd"
    time_before = packed.stat().st_mtime_ns
    assert prepare(repo, "--output", copy, "--pack").returncode == 0
    assert content(copy) == before
    assert packed.stat().st_mtime_ns == time_before


def test_packing_can_come_later_and_png_files_can_go(prepared, downloads, tmp_path, repo):
    root = tmp_path / "deeplesion"
    prepare(repo, "--source", downloads, "--output", root)
    assert not (root / "Images_packed").exists()
    prepare(repo, "--output", root, "--pack")
    assert content(root) == content(prepared)
    shutil.rmtree(root / "Images_png")
    expected = {k: v for k, v in content(prepared).items() if not k.startswith("Images_png")}
    assert content(root) == expected
    done = prepare(repo, "--output", root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert content(root) == expected
    done = subprocess.run(
        [sys.executable, repo / "datasets" / "check_deeplesion.py", "--root", root], capture_output=True, cwd=repo
    )
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["weak_masks.json", "prepare.jsonl", "Images_packed/000002_01_01.b2nd", "check.json"])
def test_a_truncated_file_is_found_and_made_again(prepared, copy, repo, name):
    truncate(copy / name)
    assert content(copy) != content(prepared)
    assert prepare(repo, "--output", copy, "--pack").returncode == 0
    assert content(copy) == content(prepared)


def test_a_truncated_slice_is_unpacked_again(prepared, copy, downloads, repo):
    truncate(copy / "Images_png" / "000001_01_01" / os.listdir(copy / "Images_png" / "000001_01_01")[0])
    assert prepare(repo, "--source", downloads, "--output", copy, "--pack").returncode == 0
    assert content(copy) == content(prepared)


def test_changed_data_are_looked_at_again(prepared, copy, repo):
    data = Dataset(copy)
    row = data.key_slices(1)[0]
    truncate(data.path(row, 1))
    done = prepare(repo, "--output", copy, "--pack")
    assert done.returncode == 0
    assert "1 slices that are no complete PNG" in done.stdout
    changed = {name for name, digest in content(copy).items() if content(prepared)[name] != digest}
    series = data.path(row).parent.name
    slice_name = os.path.relpath(data.path(row, 1), copy)
    assert changed == {slice_name, f"Images_packed/{series}.b2nd", "check.json", "prepare.jsonl"}
    data.path(row).unlink()
    done = prepare(repo, "--output", copy, "--pack")
    assert done.returncode == 1
    assert "key slices that are not on disk" in done.stdout
    sources = [mask["source"] for mask in json.loads((copy / "weak_masks.json").read_text())["masks"]]
    assert "none" in sources


def number_of_files(root):
    return sum(len(names) for _, _, names in os.walk(root))


def kill_at(files, root, arguments, repo):
    """Start a run and SIGKILL its main process once there are so many files; returns whether it still ran then."""
    process = subprocess.Popen(arguments, cwd=repo, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while number_of_files(root) < files and process.poll() is None:
        pass
    killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return killed


@pytest.mark.slow
def test_killed_ten_times_and_started_again(prepared, downloads, tmp_path, repo):
    """Nothing of the interrupted runs remains."""
    root = tmp_path / "deeplesion"
    arguments = command(repo, "--source", downloads, "--output", root, "--pack", "--workers", "2")
    rng, kills, total = random.Random(0), 0, number_of_files(prepared)
    for _ in range(40):
        if kills == 10:
            break
        if kill_at(rng.randint(1 + number_of_files(root), total), root, arguments, repo):
            kills += 1
        if number_of_files(root) >= total - 1:
            shutil.rmtree(root)
    assert kills == 10
    assert prepare(repo, *arguments[2:]).returncode == 0
    assert content(root) == content(prepared)


def test_damaged_and_missing_downloads(downloads, tmp_path, repo):
    shutil.copytree(downloads, tmp_path / "downloads")
    truncate(tmp_path / "downloads" / "Images_png_02.zip")
    done = prepare(repo, "--source", tmp_path / "downloads", "--output", tmp_path / "d")
    assert done.returncode == 1
    assert "Images_png_02.zip: expected a complete zip file" in done.stderr
    done = prepare(repo, "--source", tmp_path / "downloads" / "Images_png_01.zip", "--output", tmp_path / "e")
    assert done.returncode == 1
    assert "DL_info.csv is not there" in done.stderr
    done = prepare(repo, "--source", tmp_path / "none", "--output", tmp_path / "e")
    assert "none: no such file or folder" in done.stderr


def test_journal_drops_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "prepare.jsonl"
    results = [
        {"series": name, "fingerprint": "x", "findings": [], "masks": [], "packed": "yes"} for name in ("b", "a", "c")
    ]
    journal = Journal(str(path))
    for result in results:
        journal.append(result)
    journal.close()
    lines = path.read_text()
    assert [json.loads(line)["series"] for line in lines.splitlines()] == ["b", "a", "c"]
    for length in range(len(lines)):
        path.write_text(lines[:length])
        again = Journal(str(path))
        assert len(again.results) >= lines[:length].count("\n")
        for result in results:
            again.append(result)
        again.finish({"a", "b", "c"})
        assert [json.loads(line)["series"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
