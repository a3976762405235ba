"""A real prediction of many volumes that is killed at random and started again ends as if nothing had been."""

import csv
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("nibabel")

from a3d_det2.engine import torchvision_loop
from a3d_det2.engine.archive.manifest import Item, write_manifest
from a3d_det2.volumes.phantom import random_volume, write_nifti
from tests.engine.archive.test_command import SIZES
from tests.engine.conftest import TINY
from tests.engine.test_predictor import make_config, save_weights

pytestmark = pytest.mark.slow
VOLUMES, KILLS = 200, {"local": 10, "ray": 4}  # Ray takes ten seconds to start
RAY = pytest.param("ray", marks=pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="there is no Ray"))


def write_volume(folder, number):
    phantom = random_volume(number, size=64, slice_interval=6.0, length=120.0, lesion_size=(20.0, 40.0))
    write_nifti(str(folder / f"v{number:03d}.nii.gz"), phantom)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A manifest of 200 volumes, weights, and the output of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("archive")
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(partial(write_volume, folder), range(VOLUMES)))
    items = [Item(f"v{i:03d}", str(folder / f"v{i:03d}.nii.gz")) for i in range(VOLUMES)]
    write_manifest(str(folder / "archive.csv"), items)
    save_weights(torchvision_loop, make_config(torchvision_loop, *SIZES), folder / "model.pth")
    assert start(folder, folder / "undisturbed", "local").wait() == 0, read_log(folder)
    return folder


def start(folder, output, kind):
    command = [sys.executable, "tools/predict_archive.py", "--manifest", folder / "archive.csv", "--output", output]
    command += ["--workers", "2", "--engine", "torchvision", "--config-file", "quick/a3d_7slice.yaml"]
    command += ["--weights", folder / "model.pth", "--min-score", "0.3", "--link-iou", "0.2"]
    command += ["--without", "viewer,pictures", *(["--ray"] if kind == "ray" else []), *TINY, *SIZES]
    with open(folder / "log.txt", "a") as log:
        how = {"stdout": log, "stderr": log, "start_new_session": True, "cwd": Path(__file__).parents[3]}
        return subprocess.Popen(list(map(str, command)), **how)


def read_log(folder):
    return (folder / "log.txt").read_text()[-3000:]


def done(output):
    return len(list(output.glob("items/*/*/item.json")))


def others(process, kind) -> list[int]:
    """The processes that work for a first process: those of its session, or all of Ray."""
    if kind == "local":
        found = subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True).stdout.split()
        return [number for number in map(int, found) if number != process.pid]
    found, new = set(), {process.pid}
    while new:  # those of Ray have sessions of their own
        listed = subprocess.run(["pgrep", "-P", ",".join(map(str, new))], capture_output=True, text=True).stdout
        new = set(map(int, listed.split())) - found
        found |= new
    return sorted(found)


def command_line(number):
    path = Path("/proc", str(number), "cmdline")
    return path.read_text() if path.exists() else ""


def kill(numbers):
    for number in numbers:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.mark.parametrize("kind", ["local", RAY])
def test_killed_again_and_again(archive, tmp_path, kind):
    output, rng = tmp_path / "out", random.Random(0)
    victims = ["worker", "driver", "everything"] * 3 + ["worker"]
    rng.shuffle(victims)
    process = start(archive, output, kind)
    for victim in victims[: KILLS[kind]]:
        goal, end = done(output) + rng.randint(3, 12), time.monotonic() + 120
        while done(output) < goal and process.poll() is None:
            assert time.monotonic() < end, read_log(archive)
            time.sleep(0.01)
        time.sleep(rng.random() * 0.15)
        assert process.poll() is None, read_log(archive)
        workers = others(process, kind)
        if victim == "worker":  # of Ray an actor: without its raylet it is over, as when everything is killed
            named = [number for number in workers if kind == "local" or "ray::Map" in command_line(number)]
            kill([rng.choice(named)] if named else [])
        kill([process.pid] if victim != "worker" else [])
        kill(workers if victim == "everything" else [])
        if victim != "worker":
            process.wait()
            process = start(archive, output, kind)
    assert done(output) < VOLUMES
    while (status := process.wait()) != 0 and kind == "ray":  # its own processes, such as the raylet, were killed
        assert status != 2, read_log(archive)
        process = start(archive, output, kind)
    assert status == 0, read_log(archive)
    assert done(output) == VOLUMES
    assert os.listdir(output / "parts") == []
    differences = subprocess.run(["diff", "-r", archive / "undisturbed", output], capture_output=True, text=True)
    assert differences.stdout == differences.stderr == ""
    shutil.rmtree(output)


@pytest.mark.parametrize("kind", ["local", RAY])
def test_ten_bad_volumes_are_ten_errors_by_name(archive, tmp_path, kind):
    bad = {f"bad{i}": tmp_path / f"bad{i}.nii.gz" for i in range(10)}
    whole = (archive / "v000.nii.gz").read_bytes()
    for number, path in enumerate(bad.values()):
        path.write_bytes(whole[: number * len(whole) // 12])  # the first is empty
    (tmp_path / "bad9.nii.gz").unlink()
    items = [Item(f"v{i:03d}", str(archive / f"v{i:03d}.nii.gz")) for i in range(20)]
    items[5:5] = [Item(name, str(path)) for name, path in bad.items()]
    write_manifest(str(tmp_path / "archive.csv"), items)
    shutil.copy(archive / "model.pth", tmp_path)
    assert start(tmp_path, tmp_path / "out", kind).wait() == 0, read_log(tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert "30 volumes: 20 done, 10 errors, 0 were done before." in log
    assert all(f"{name}: " in log for name in bad)
    command = [sys.executable, "tools/merge_archive.py", "--manifest", tmp_path / "archive.csv"]
    command += ["--output", tmp_path / "out", "--table", tmp_path / "lesions.csv"]
    merged = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert merged.returncode == 0, merged.stderr
    rows = csv.DictReader((tmp_path / "lesions.items.csv").open())
    errors = {row["volume"]: row["error"] for row in rows if row["status"] == "error"}
    assert errors.keys() == bad.keys()
    assert errors["bad9"] == "FileNotFoundError"
    assert set(errors.values()) == {"FileNotFoundError", "UnreadableVolume"}
