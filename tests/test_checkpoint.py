import functools
import http.server
import os
import re
import threading

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.engine import TrainerBase
from torch import nn

from a3d_det2 import BestCheckpointer, LesionCheckpointer
from a3d_det2.modeling import DenseNet3D


class Detector(nn.Module):
    def __init__(self, op="a3d", num_slices=3):
        super().__init__()
        self.trunk = DenseNet3D(op, num_slices)
        self.head = nn.Linear(2, 2)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    torchvision = pytest.importorskip("torchvision")
    path = tmp_path_factory.mktemp("weights") / "densenet121.pth"
    network = torchvision.models.densenet121()
    torch.save(network.state_dict(), path)
    return path, network


@pytest.mark.parametrize(
    ("stem", "channel"), [("middle", lambda w: w[:, 1:2]), ("sum", lambda w: w.sum(1, keepdim=True))]
)
def test_torchvision_weights_from_a_file(imagenet, stem, channel):
    path, network = imagenet
    model = Detector()
    head = model.head.weight.clone()
    LesionCheckpointer(model, stem_weights=stem).load(str(path))
    assert torch.equal(model.trunk.conv0.weight, channel(network.features.conv0.weight))
    assert torch.equal(
        model.trunk.denseblock2.denselayer3.conv2.weight, network.features.denseblock2.denselayer3.conv2.weight
    )
    assert torch.equal(model.head.weight, head)


def test_torchvision_weights_from_a_url(imagenet, tmp_path, monkeypatch):
    path, network = imagenet
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        model = Detector()
        LesionCheckpointer(model).load(f"http://127.0.0.1:{server.server_port}/{path.name}")
        server.shutdown()
    assert torch.equal(model.trunk.norm0.weight, network.features.norm0.weight)
    assert torch.equal(model.trunk.conv0.weight, network.features.conv0.weight[:, 1:2])


def test_torchvision_weights_need_a_trunk(imagenet):
    with pytest.raises(ValueError, match="need a model with one DenseNet3D trunk. Linear has 0"):
        LesionCheckpointer(nn.Linear(2, 2)).load(str(imagenet[0]))


def test_weights_that_do_not_fit_are_an_error(tmp_path):
    LesionCheckpointer(Detector("a3d"), str(tmp_path)).save("a3d")
    with pytest.raises(ValueError, match=r"a3d.pth: The weights do not fit[^$]*conv1.fusion_weight: not in the model"):
        LesionCheckpointer(Detector("none")).load(str(tmp_path / "a3d.pth"))
    with pytest.raises(ValueError, match=re.escape("conv1.fusion_weight: expected shape (7, 7, 64), got (3, 3, 64)")):
        LesionCheckpointer(Detector("a3d", 7)).load(str(tmp_path / "a3d.pth"))
    LesionCheckpointer(Detector("none"), str(tmp_path)).save("none")
    with pytest.raises(ValueError, match=r"conv1.fusion_weight: not in the checkpoint"):
        LesionCheckpointer(Detector("a3d")).load(str(tmp_path / "none.pth"))
    with pytest.raises(AssertionError, match=r"nowhere.pth not found"):
        LesionCheckpointer(Detector("a3d")).load(str(tmp_path / "nowhere.pth"))


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": [1, 2]}, tmp_path / "inner.pth")
    LesionCheckpointer(nn.Linear(2, 2), str(tmp_path)).save("whole")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:500])
    (tmp_path / "empty.pth").write_bytes(b"")
    checkpointer = LesionCheckpointer(nn.Linear(2, 2))
    for name in ("list", "inner", "half", "empty"):
        with pytest.raises(ValueError, match=rf"{name}.pth: expected a (checkpoint|state dict)"):
            checkpointer.load(str(tmp_path / f"{name}.pth"))
    checkpointer.load(str(tmp_path / "whole.pth"))  # an error leaves it usable


def test_round_trip_and_tag(tmp_path):
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    checkpointer = LesionCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000009", iteration=9)
    checkpointer.save("model_best", tag=False)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000009.pth"
    rest = LesionCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    assert rest["iteration"] == 9
    assert torch.equal(model.weight, other.weight)


def test_a_save_that_is_cut_short_leaves_the_last_one(tmp_path, monkeypatch):
    checkpointer = LesionCheckpointer(nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_0000000", iteration=0)

    def half(data, path):
        with open(path, "wb") as f:
            f.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    for name in ("model_0000000", "model_0000001"):
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save(name, iteration=1)
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 0


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


def test_best_without_any_lesion(tmp_path):
    assert run(tmp_path, 0, [float("nan")] * 2) is None
