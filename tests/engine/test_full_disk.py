"""A disk of 600 kB that really is full, mounted by root: what becomes of files that are written there."""

import os
import subprocess

import numpy as np
import pytest
import torch

from a3d_det2.checkpoint.strict import StrictCheckpointer
from a3d_det2.data.packed import packed_path, write_packed
from a3d_det2.engine.archive.manifest import Item, write_manifest
from a3d_det2.engine.archive.running import predict_archive
from a3d_det2.engine.archive.store import output_errors, read_record
from a3d_det2.engine.archive.work import How
from a3d_det2.engine.mistakes import Mistake


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def grow(disk):
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)


def test_checkpoint(disk):
    model = torch.nn.Linear(200, 250)  # 201 kB
    checkpointer = StrictCheckpointer(model, str(disk))
    for number in (1, 2):
        checkpointer.save(f"model_{number}", iteration=number)
    before = {path.name: path.read_bytes() for path in disk.iterdir()}
    with pytest.raises(OSError, match="model_3.pth.* cannot be written|No space left"):
        checkpointer.save("model_3", iteration=3)
    assert {path.name: path.read_bytes() for path in disk.iterdir()} == before
    checkpointer = StrictCheckpointer(model, str(disk))
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 2
    grow(disk)
    checkpointer.save("model_3", iteration=3)
    assert checkpointer.get_checkpoint_file() == str(disk / "model_3.pth")


class Writes:
    """Results of 100 kB; see :class:`a3d_det2.engine.archive.work.Task`."""

    run, how = "run 1", {}

    def read(self, item):
        return item.id

    def wants_gpu(self):
        return False

    def build(self, index):
        return self

    def __call__(self, volume, folder):
        with output_errors(folder), open(os.path.join(folder, "lesions.nii.gz"), "wb") as f:
            f.write(bytes(100_000))
        return {"lesions": 0}

    def with_less_memory(self):
        return None


def test_result(disk, tmp_path):
    """The run ends; each item is whole or still to do, and all come when there is room."""
    names = list("abcdefgh")
    manifest, output = str(tmp_path / "archive.csv"), str(disk / "out")
    write_manifest(manifest, [Item(name, "x", "") for name in names])
    with pytest.raises(Mistake, match="results cannot be written"):
        predict_archive(Writes(), manifest, How(output))
    done = [name for name in names if read_record(output, name)]
    assert 1 <= len(done) < len(names)
    assert all(read_record(output, name)["status"] == "done" for name in done)
    files = list(disk.glob("out/items/*/*/lesions.nii.gz"))
    assert [path.stat().st_size for path in files] == [100_000] * len(done)
    with pytest.raises(Mistake, match="cannot be written"):  # still full
        predict_archive(Writes(), manifest, How(output))
    grow(disk)
    assert predict_archive(Writes(), manifest, How(output)) == {"done": len(names) - len(done)}
    assert all(read_record(output, name)["status"] == "done" for name in names)


def test_packed_file(disk):
    pytest.importorskip("blosc2")
    noise = np.random.default_rng(0).integers(0, 2**16, (12, 200, 200), np.uint16)  # 80 kB a slice, packed as well
    os.makedirs(disk / "Images_packed")
    path = packed_path(str(disk / "Images_png" / "000001_01_01"))
    write_packed(path, [1, 2], noise[:2])
    before = (disk / "Images_packed" / "000001_01_01.b2nd").read_bytes()
    with pytest.raises(OSError, match="000001_01_01.b2nd"):
        write_packed(path, list(range(12)), noise)
    assert os.listdir(disk / "Images_packed") == ["000001_01_01.b2nd"]
    assert (disk / "Images_packed" / "000001_01_01.b2nd").read_bytes() == before
    grow(disk)
    write_packed(path, list(range(12)), noise)
