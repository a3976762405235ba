"""What a training does when something goes wrong, in both engines."""

import logging
import os
import re

import numpy as np
import pytest
import torch

from a3d_det2.checkpoint.strict import StrictCheckpointer, UnreadableWeights
from a3d_det2.engine.common import check_loss, naming_the_batch
from a3d_det2.engine.torchrun import goes_on
from tests.damage import truncate

SHORT = ["SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "0"]


def checkpoints(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".pth") and name.startswith("model_"))


def test_a_checkpoint_that_was_cut_short(start, tmp_path, caplog):
    """The one before it is found and used, and the log says so."""
    out = tmp_path / "out"
    assert start(*SHORT) is None
    assert {"model_0000001.pth", "model_0000003.pth", "model_final.pth"} <= set(checkpoints(out))
    (out / "model_final.pth").unlink()
    (out / "last_checkpoint").write_text("model_0000003.pth")
    truncate(out / "model_0000003.pth")
    assert start(*SHORT, arguments=["--resume"]) is None
    log = caplog.text + (out / "log.txt").read_text()  # of which pytest lets an engine write one
    assert f"Going on from {out}/model_0000001.pth, as what came after it cannot be read:" in log
    assert "model_0000003.pth: expected a checkpoint with a state dict, got an unreadable file" in log
    assert torch.load(out / "model_final.pth")["iteration"] == 5
    assert torch.load(out / "model_0000003.pth")["iteration"] == 3
    # None is left.
    for path in out.glob("model_*.pth"):
        truncate(path)
    error = start(*SHORT, arguments=["--resume"])
    assert "model_final.pth: expected a checkpoint with a state dict" in error


def test_a_nan_in_an_image(start, tmp_path, monkeypatch):
    """It stops by the names of the iteration and the images, keeps the checkpoints and is no best model."""
    from a3d_det2.data import sample

    window, calls = sample.window_hu, []

    def with_nan(*args, **kwargs):
        calls.append(1)
        image = window(*args, **kwargs)
        if len(calls) > 7:  # in the fourth batch of two
            image[...] = np.nan
        return image

    monkeypatch.setattr(sample, "window_hu", with_nan)
    error = start(*SHORT, "DATASETS.TEST", "('phantom_test',)")
    images = r"Iteration 4, with the images \S+, \S+: "
    assert re.search(rf"{images}(The loss is nan \(.*loss_\w+ nan|Predicted boxes)", error)
    assert "The last checkpoint is of before." in error
    out = tmp_path / "out"
    assert checkpoints(out) == ["model_0000001.pth"]
    weights = torch.load(out / "model_0000001.pth")["model"]
    assert all(value.isfinite().all() for value in weights.values())
    assert not (out / "inference").exists()


def test_a_nan_in_the_last_iteration_is_not_evaluated(start, tmp_path, monkeypatch):
    from a3d_det2.data import sample

    def nan(*args, **kwargs):
        image = window(*args, **kwargs)
        image[...] = np.nan
        return image

    window = sample.window_hu
    monkeypatch.setattr(sample, "window_hu", nan)
    assert "Iteration 1, with the images " in start("SOLVER.MAX_ITER", "1", "DATASETS.TEST", "('phantom_test',)")
    assert checkpoints(tmp_path / "out") == []
    assert not (tmp_path / "out" / "inference").exists()


def test_a_learning_rate_of_a_million(start, tmp_path):
    error = start(*SHORT, "SOLVER.BASE_LR", "1e6", "SOLVER.CLIP_GRADIENTS.ENABLED", "False")
    assert "Iteration " in error or "is NaN or infinite" in error
    for name in checkpoints(tmp_path / "out"):
        assert all(v.isfinite().all() for v in torch.load(tmp_path / "out" / name)["model"].values())


def test_a_learning_rate_of_a_hundred(start, tmp_path, caplog):
    """Where gradients are clipped it is no NaN at once: then the loss is what is told."""
    error = start("SOLVER.BASE_LR", "100.0", "SOLVER.MAX_ITER", "70")
    log = caplog.text + (tmp_path / "out" / "log.txt").read_text()
    assert (error and "Iteration " in error) or "Iteration 60: the loss has risen, and does not come back." in log


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    model = torch.nn.Linear(2, 2)
    checkpointer = StrictCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    before = (tmp_path / "model_0000001.pth").read_bytes()
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            model.weight[0, 0] = value
        for name in ("model_0000001", "model_best"):
            with pytest.raises(FloatingPointError, match=f"{name}.pth is not written: weight is NaN or infinite"):
                checkpointer.save(name)
    assert (tmp_path / "model_0000001.pth").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["checkpoints.txt", "last_checkpoint", "model_0000001.pth"]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_the_checkpoint_before(tmp_path, caplog, damage):
    """Of the same training: the folder has those of one before, with higher numbers."""
    model = torch.nn.Linear(2, 2)
    for training, numbers in ((1, (4, 9, 14, 99)), (2, (5, 10, 15))):
        checkpointer = StrictCheckpointer(model, str(tmp_path))
        for number in numbers:
            with torch.no_grad():
                model.weight.fill_(number)
            checkpointer.save(f"model_{number:07d}", iteration=number, training=training)
    for number in (15, 10):
        path = tmp_path / f"model_{number:07d}.pth"
        truncate(path) if damage == "cut" else path.unlink()
    checkpointer = StrictCheckpointer(model, str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert checkpointer.resume_or_load("", resume=True)["iteration"] == 5
    assert model.weight[0, 0] == 5
    assert "model_0000005.pth, as what came after it cannot be read:" in caplog.text
    assert "model_0000015.pth" in caplog.text
    (tmp_path / "model_0000005.pth").unlink()
    with pytest.raises((UnreadableWeights, FileNotFoundError), match="0000015"):
        checkpointer.resume_or_load("", resume=True)
    # Where nobody knows which belong together, such as in a folder of an earlier version, none is guessed.
    (tmp_path / "checkpoints.txt").unlink()
    with pytest.raises((UnreadableWeights, FileNotFoundError), match="0000015"):
        checkpointer.resume_or_load("", resume=True)


def test_what_was_not_written_to_its_end(tmp_path):
    """A training that is killed often does not fill the disk; what is none of ours stays."""
    model = torch.nn.Linear(2, 2)
    first = StrictCheckpointer(model, str(tmp_path), optimizer=torch.optim.SGD(model.parameters(), 0.1))
    first.save("model_0000001", iteration=1)
    parts = ["model_0000003.pth.77.part", "model_best.pth.8.part", "last_checkpoint.9.part", "checkpoints.txt.9.part"]
    others = ["model_0000003.pth.part", "notes.77.part", "model.pth.1.part.old"]
    for name in parts + others:
        (tmp_path / name).write_text("half")
    (tmp_path / "folder.pth.1.part").mkdir()
    before = sorted(os.listdir(tmp_path))
    StrictCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)  # an evaluation, maybe beside a training
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpointer = StrictCheckpointer(model, str(tmp_path), optimizer=optimizer)
    checkpointer.resume_or_load("", resume=False)
    checkpointer.save_to_disk = False  # as in all processes but the first one
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert sorted(os.listdir(tmp_path)) == before
    checkpointer.save_to_disk = True
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert sorted(os.listdir(tmp_path)) == sorted(set(before) - set(parts))
    StrictCheckpointer(model, str(tmp_path / "not there yet"), optimizer=optimizer).resume_or_load("", resume=True)


def test_a_checkpoint_on_a_full_disk(tmp_path, monkeypatch):
    """/dev/full is one: the checkpoint of before stays."""
    model = torch.nn.Linear(2, 2)
    checkpointer = StrictCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    before = (tmp_path / "model_0000001.pth").read_bytes()
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, path: save(content, "/dev/full"))
    for name in ("model_0000001", "model_0000002"):
        with pytest.raises(OSError, match=f"{name}.pth cannot be written: "):
            checkpointer.save(name)
    assert (tmp_path / "model_0000001.pth").read_bytes() == before
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert sorted(os.listdir(tmp_path)) == ["checkpoints.txt", "last_checkpoint", "model_0000001.pth"]


def test_checks_of_a_loss():
    check_loss({"a": 1.0, "b": -3.0})
    for value in (float("nan"), float("inf"), -float("inf")):
        message = rf"Iteration 3, with the images x.png, y.png: The loss is {value} \(a 1, b {value}\)"
        with pytest.raises(FloatingPointError, match=message), naming_the_batch(3, lambda: ["x.png", "y.png"]):
            check_loss({"a": 1.0, "b": value})


def test_a_restart_goes_on_from_this_training_alone(tmp_path, monkeypatch):
    """Whatever torchrun's own count says, which differs between machines."""
    mark, note = tmp_path / "last_checkpoint", tmp_path / "torchrun.json"
    mark.write_text("model_0000007.pth")
    monkeypatch.setenv("RANK", "0")
    assert goes_on(True, str(tmp_path))
    assert mark.exists()
    note.write_text('["another machine 12 345"]')
    for count in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        mark.write_text("model_0000007.pth")
        assert not goes_on(False, str(tmp_path))
        assert not mark.exists()
        assert (tmp_path / "last_checkpoint.before").read_text() == "model_0000007.pth"
        mark.write_text("model_0000009.pth")
        assert goes_on(False, str(tmp_path))
        assert mark.read_text() == "model_0000009.pth"
        note.write_text("{")
    assert not goes_on(False, str(tmp_path))
    note.write_text('["another machine 12 345"]')
    mark.write_text("model_0000009.pth")
    monkeypatch.setenv("RANK", "1")
    assert not goes_on(False, str(tmp_path))
    assert mark.exists()  # the first process alone writes


def test_a_clock_that_was_moved_back(start, tmp_path):
    """What is the latest is said by names and numbers, and by no time."""
    out = tmp_path / "out"
    assert start(*SHORT) is None
    (out / "model_final.pth").unlink()
    (out / "last_checkpoint").write_text("model_0000003.pth")
    for number, name in enumerate(sorted(os.listdir(out))):
        os.utime(out / name, (2e9 - number, 2e9 - number))
    assert start(*SHORT, arguments=["--resume"]) is None
    assert torch.load(out / "model_final.pth")["iteration"] == 5
