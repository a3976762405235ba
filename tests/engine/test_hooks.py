import os

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.engine import TrainerBase
from torch import nn

from a3d_det2 import BestCheckpointer, LesionCheckpointer


class FakeTrainer(TrainerBase):
    def __init__(self, start_iter, max_iter, values):
        super().__init__()
        self.start_iter, self.max_iter, self.values = start_iter, max_iter, values

    def run_step(self):
        self.storage.put_scalar("froc/avg", self.values[self.iter], smoothing_hint=False)


def run(folder, start_iter, values):
    checkpointer = LesionCheckpointer(nn.Linear(2, 2), str(folder))
    trainer = FakeTrainer(start_iter, len(values), values)
    trainer.register_hooks([BestCheckpointer(1, checkpointer, "froc/avg")])
    trainer.train(start_iter, len(values))
    path = folder / "model_best.pth"
    return torch.load(path)["iteration"] if os.path.exists(path) else None


def test_best_is_kept_over_a_resume(tmp_path):
    assert run(tmp_path, 0, [0.2, 0.5, 0.3]) == 1
    assert run(tmp_path, 3, [0, 0, 0, 0.4, 0.45]) == 1  # resumed: 0.45 is not better than 0.5
    assert run(tmp_path, 5, [0] * 5 + [0.6]) == 5
    assert run(tmp_path, 0, [0.1]) == 0  # a new training starts anew
    assert not (tmp_path / "last_checkpoint").exists()


def test_best_by_another_metric_is_looked_for_anew(tmp_path):
    LesionCheckpointer(nn.Linear(2, 2), str(tmp_path)).save("model_best", iteration=7, **{"phantom_val/froc/avg": 0.9})
    assert run(tmp_path, 1, [0, 0.2]) == 1


def test_a_damaged_best_is_named(tmp_path):
    (tmp_path / "model_best.pth").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"model_best.pth: expected the best weights so far, got another file"):
        run(tmp_path, 1, [0, 0.2])


def test_best_without_any_lesion(tmp_path):
    assert run(tmp_path, 0, [float("nan")] * 2) is None
