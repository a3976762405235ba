import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("blosc2")

from pycocotools import mask as coco_mask

from a3d_det2.data import load_deeplesion
from tests.damage import Dataset, truncate
from tests.scripts import without_detectron2


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
    return without_detectron2("datasets/prepare_deeplesion.py", *options)


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
    done = prepare(repo, "--output", root)
    assert done.returncode == 0, done.stdout + done.stderr
    same = [name for name in content(prepared) if name.startswith("Images_packed") or name.endswith("masks.json")]
    assert {name: content(root)[name] for name in same} == {name: content(prepared)[name] for name in same}
    done = subprocess.run(
        without_detectron2("datasets/check_deeplesion.py", "--root", root), capture_output=True, cwd=repo
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
    assert "1 PNG files that are damaged" in done.stdout
    changed = {name for name, digest in content(copy).items() if content(prepared)[name] != digest}
    assert changed == {os.path.relpath(data.path(row, 1), copy), "check.json", "prepare.jsonl"}


def test_a_slice_that_only_the_packed_series_has_is_not_lost(prepared, copy, repo):
    """Whatever becomes of its PNG file."""
    data = Dataset(copy)
    path = data.path(data.key_slices(1)[0])
    stored = path.read_bytes()
    packed = copy / "Images_packed" / f"{path.parent.name}.b2nd"
    check = without_detectron2("datasets/check_deeplesion.py", "--root", copy)
    truncate(path)
    for options in ((), ("--again",)):
        done = prepare(repo, "--output", copy, *options)
        assert done.returncode == 0
        assert "[png_damaged]" in done.stdout
        assert packed.read_bytes() == (prepared / "Images_packed" / packed.name).read_bytes()
        assert "[png_damaged]" in subprocess.run(check, capture_output=True, text=True, cwd=repo).stdout
    path.write_bytes(stored)
    assert prepare(repo, "--output", copy).returncode == 0
    assert content(copy) == content(prepared)


def test_a_damaged_packed_series_that_may_be_the_only_copy_is_left(prepared, copy, repo):
    data = Dataset(copy)
    path = data.path(data.key_slices(1)[0])
    path.unlink()
    packed = copy / "Images_packed" / f"{path.parent.name}.b2nd"
    truncate(packed)
    rest = packed.read_bytes()
    done = prepare(repo, "--output", copy)
    assert done.returncode == 1
    assert "[packed_damaged]" in done.stdout
    assert packed.read_bytes() == rest


def test_an_unreadable_key_slice_has_no_mask(prepared, copy, repo):
    data = Dataset(copy)
    shutil.rmtree(copy / "Images_packed")
    truncate(data.path(data.key_slices(1)[0]))
    done = prepare(repo, "--output", copy)
    assert done.returncode == 1
    assert "key slices that are no complete PNG" in done.stdout
    assert "none" in [mask["source"] for mask in json.loads((copy / "weak_masks.json").read_text())["masks"]]


def test_killed_between_packing_and_its_record(prepared, downloads, tmp_path, repo):
    root = tmp_path / "deeplesion"
    prepare(repo, "--source", downloads, "--output", root)
    record = (root / "prepare.jsonl").read_bytes()
    prepare(repo, "--output", root, "--pack")
    (root / "prepare.jsonl").write_bytes(record)
    assert "Series packed: 22 yes" in prepare(repo, "--output", root, "--pack").stdout
    assert content(root) == content(prepared)
    shutil.rmtree(root / "Images_packed")
    assert "Series packed: 22 not asked for" in prepare(repo, "--output", root).stdout
    assert (root / "prepare.jsonl").read_bytes() == record


def test_a_change_of_the_same_size_needs_to_be_asked_for(prepared, copy, repo):
    data = Dataset(copy)
    path, other = (data.path(row) for row in data.key_slices(1)[:2])
    stored = other.read_bytes()
    path.write_bytes(
        stored + b" " * (path.stat().st_size - len(stored)) if len(stored) < path.stat().st_size else stored
    )
    check = without_detectron2("datasets/check_deeplesion.py", "--root", copy)
    done = subprocess.run(check, capture_output=True, text=True, cwd=repo)
    assert done.returncode == 1
    assert "packed_outdated" in done.stdout
    assert prepare(repo, "--output", copy, "--again").returncode == 0
    assert subprocess.run(check, capture_output=True, cwd=repo).returncode == 0


@pytest.mark.parametrize("what", ["some", "all"])
def test_packed_slices_whose_png_files_went_are_the_only_copy(prepared, copy, repo, what):
    data = Dataset(copy)
    for row in data.key_slices(1):
        paths = sorted(data.path(row).parent.iterdir())
        for path in paths if what == "all" else paths[:3]:
            path.unlink()
    files = ("Images_packed", "weak_masks", "check")
    before = {name: digest for name, digest in content(copy).items() if name.startswith(files)}
    for options in ((), ("--pack",), ("--pack", "--again")):
        done = prepare(repo, "--output", copy, *options)
        assert done.returncode == 0, done.stdout
        after = content(copy)
        assert {name: after.get(name) for name in before} == before


def test_other_boxes_of_the_same_slices(prepared, copy, repo):
    data = Dataset(copy)
    row = data.key_slices(1)[0]
    x1, y1, x2, y2 = map(float, row["Bounding_boxes"].split(","))
    row["Bounding_boxes"] = f"{x1 + 1}, {y1}, {x2}, {y2}"
    data.save()
    table, masks = str(copy / "DL_info.csv"), str(copy / "weak_masks.json")
    with pytest.raises(ValueError, match="It was made for another file: run datasets/prepare_deeplesion.py again"):
        load_deeplesion(table, "", "train", mask_path=masks)
    assert prepare(repo, "--output", copy).returncode == 0
    load_deeplesion(table, "", "train", mask_path=masks)
    packed = {name: digest for name, digest in content(prepared).items() if name.startswith("Images_packed")}
    assert {name: content(copy)[name] for name in packed} == packed


def test_two_runs_at_once(prepared, downloads, tmp_path, repo):
    root = tmp_path / "deeplesion"
    options = ["--source", downloads, "--output", root, "--pack", "--workers", "2"]
    arguments = command(repo, *options)
    runs = [subprocess.Popen(arguments, cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    outputs = [run.communicate(timeout=120)[0].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert content(root) == content(prepared)


def test_zip_files_leave_linked_folders_alone(downloads, tmp_path, repo):
    source = tmp_path / "source"
    shutil.copytree(downloads, source)
    with zipfile.ZipFile(source / "Images_png_01.zip") as archive:
        name = next(member for member in archive.namelist() if member.endswith(".png"))
    folder = source / "unpacked" / name.split("/")[1]
    folder.mkdir(parents=True)
    done = prepare(repo, "--source", source, "--output", tmp_path / "d")
    assert f"1 series ({folder.name} is the first) are linked from folders; not unpacked" in done.stdout
    assert list(folder.iterdir()) == []


def test_tables(downloads, tmp_path, repo):
    """One csv, wherever it is; several are no question if they are the same."""
    shutil.copytree(downloads, tmp_path / "source")
    os.rename(tmp_path / "source" / "DL_info.csv", tmp_path / "renamed.csv")
    options = ["--source", tmp_path / "source", tmp_path / "renamed.csv", "--output", tmp_path / "d"]
    assert prepare(repo, *options).returncode == 0
    with open(tmp_path / "renamed.csv", "a") as f:
        f.write("\n")
    done = prepare(repo, *options)
    assert done.returncode == 1
    assert "DL_info.csv and" in done.stderr
    assert "renamed.csv differ" in done.stderr


def test_no_blosc2(copy, repo, tmp_path):
    (tmp_path / "blosc2.py").write_text("raise ImportError('hidden')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = without_detectron2("datasets/prepare_deeplesion.py", "--output", tmp_path / "new", "--pack")
    done = subprocess.run(run, capture_output=True, text=True, cwd=repo, env=environment)
    assert done.returncode == 1
    assert "pip install 'blosc2>=4.14.1'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def number_of_files(root):
    return sum(len(names) for _, _, names in os.walk(root))


def is_at_work(group):
    """Whether a process of a group runs; one that has ended and that nobody has asked for does not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


def kill_at(files, root, arguments, repo):
    """Start a run and SIGKILL its main process once there are so many files; returns whether it still ran then.

    Its workers notice and end by themselves; until then they may still write.
    """
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(arguments, cwd=repo, **quiet)
    while number_of_files(root) < files and process.poll() is None:
        time.sleep(0.001)
    killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while is_at_work(process.pid):
        assert time.monotonic() < deadline, "workers were still there a minute after their parent was killed"
        time.sleep(0.01)
    return killed


@pytest.mark.slow
def test_killed_ten_times_and_started_again(prepared, downloads, tmp_path, repo):
    """Nothing of the interrupted runs remains."""
    root = tmp_path / "deeplesion"
    options = ["--source", downloads, "--output", root, "--pack", "--workers", "2"]
    arguments = command(repo, *options)
    rng, kills, total = random.Random(0), 0, number_of_files(prepared)
    for _ in range(40):
        if kills == 10:
            break
        if kill_at(rng.randint(1 + number_of_files(root), total), root, arguments, repo):
            kills += 1
        if number_of_files(root) >= total - 1:
            shutil.rmtree(root)
    assert kills == 10
    assert prepare(repo, *options).returncode == 0
    assert content(root) == content(prepared)


def test_what_killed_runs_left_half_written_is_removed(prepared, copy, repo):
    """With a process id or, of earlier runs, without; nothing else, and nothing in folders that are linked."""
    shutil.move(copy / "Images_png" / "000001_01_01", copy.parent / "000001_01_01")
    (copy / "Images_png" / "000001_01_01").symlink_to(copy.parent / "000001_01_01")
    left = ["DL_info.csv.part", "weak_masks.json.part", "check.json.12.part", "prepare.jsonl.345.part"]
    left += ["Images_packed/000001_01_01.b2nd.678.part", "Images_png/000002_01_01/103.png.9.part"]
    others = ["notes.part", "103.png.part", "Images_png/000002_01_01/103.png.part", "Images_png/1.png.9.part"]
    others += ["Images_png/000001_01_01/103.png.9.part"]
    for name in left + others:
        (copy / name).write_text("half")
    assert prepare(repo, "--output", copy, "--pack").returncode == 0
    assert set(content(copy)) == {*content(prepared), *others}


def test_damaged_and_missing_downloads(downloads, tmp_path, repo):
    shutil.copytree(downloads, tmp_path / "downloads")
    truncate(tmp_path / "downloads" / "Images_png_02.zip")
    done = prepare(repo, "--source", tmp_path / "downloads", "--output", tmp_path / "d")
    assert done.returncode == 1
    assert "Images_png_02.zip: expected a complete zip file" in done.stderr
    done = prepare(repo, "--source", tmp_path / "downloads" / "Images_png_01.zip", "--output", tmp_path / "e")
    assert done.returncode == 1
    assert "DL_info.csv is not there" in done.stderr
    (tmp_path / "file").write_text("")
    assert "Traceback" not in prepare(repo, "--output", tmp_path / "file").stderr
    done = prepare(repo, "--source", tmp_path / "none", "--output", tmp_path / "e")
    assert "none: no such file or folder" in done.stderr
