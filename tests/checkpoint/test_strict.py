import functools
import http.server
import importlib
import re
import threading
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from a3d_det2.modeling import DenseNet3D

CLASSES = ["strict_checkpoint.StrictCheckpointer"]
if find_spec("detectron2") is not None:
    CLASSES.append("checkpoint.LesionCheckpointer")


@pytest.fixture(params=CLASSES)
def checkpointer_class(request):
    """Of each engine."""
    module, name = request.param.split(".")
    return getattr(importlib.import_module(f"a3d_det2.{module}"), name)


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
def test_torchvision_weights_from_a_file(checkpointer_class, imagenet, stem, channel):
    path, network = imagenet
    model = Detector()
    head = model.head.weight.clone()
    checkpointer_class(model, stem_weights=stem).load(str(path))
    assert torch.equal(model.trunk.conv0.weight, channel(network.features.conv0.weight))
    assert torch.equal(
        model.trunk.denseblock2.denselayer3.conv2.weight, network.features.denseblock2.denselayer3.conv2.weight
    )
    assert torch.equal(model.head.weight, head)


def test_torchvision_weights_from_a_url(checkpointer_class, imagenet, tmp_path, monkeypatch):
    path, network = imagenet
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        model = Detector()
        checkpointer_class(model).load(f"http://127.0.0.1:{server.server_port}/{path.name}")
        server.shutdown()
    assert torch.equal(model.trunk.norm0.weight, network.features.norm0.weight)
    assert torch.equal(model.trunk.conv0.weight, network.features.conv0.weight[:, 1:2])


def test_torchvision_weights_need_a_trunk(checkpointer_class, imagenet):
    with pytest.raises(ValueError, match="need a model with one DenseNet3D trunk. Linear has 0"):
        checkpointer_class(nn.Linear(2, 2)).load(str(imagenet[0]))


def test_weights_that_do_not_fit_are_an_error(checkpointer_class, tmp_path):
    checkpointer_class(Detector("a3d"), str(tmp_path)).save("a3d")
    with pytest.raises(ValueError, match=r"a3d.pth: The weights do not fit[^$]*conv1.fusion_weight: not in the model"):
        checkpointer_class(Detector("none")).load(str(tmp_path / "a3d.pth"))
    with pytest.raises(ValueError, match=re.escape("conv1.fusion_weight: expected shape (7, 7, 64), got (3, 3, 64)")):
        checkpointer_class(Detector("a3d", 7)).load(str(tmp_path / "a3d.pth"))
    checkpointer_class(Detector("none"), str(tmp_path)).save("none")
    with pytest.raises(ValueError, match=r"conv1.fusion_weight: not in the checkpoint"):
        checkpointer_class(Detector("a3d")).load(str(tmp_path / "none.pth"))
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth: there is no such file of weights"):
        checkpointer_class(Detector("a3d")).load(str(tmp_path / "nowhere.pth"))


def test_files_that_are_no_checkpoints_are_named(checkpointer_class, tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": [1, 2]}, tmp_path / "inner.pth")
    checkpointer_class(nn.Linear(2, 2), str(tmp_path)).save("whole")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:500])
    (tmp_path / "empty.pth").write_bytes(b"")
    checkpointer = checkpointer_class(nn.Linear(2, 2))
    for name in ("list", "inner", "half", "empty"):
        with pytest.raises(ValueError, match=rf"{name}.pth: expected a (checkpoint|state dict)"):
            checkpointer.load(str(tmp_path / f"{name}.pth"))
    checkpointer.load(str(tmp_path / "whole.pth"))  # an error leaves it usable


def test_round_trip_and_tag(checkpointer_class, tmp_path):
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    checkpointer = checkpointer_class(model, str(tmp_path))
    checkpointer.save("model_0000009", iteration=9)
    checkpointer.save("model_best", tag=False)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000009.pth"
    rest = checkpointer_class(other, str(tmp_path)).resume_or_load("", resume=True)
    assert rest["iteration"] == 9
    assert torch.equal(model.weight, other.weight)


def test_a_checkpoint_without_what_a_resume_needs(checkpointer_class, tmp_path):
    model = nn.Linear(2, 2)
    checkpointer_class(model, str(tmp_path)).save("weights")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpointer = checkpointer_class(nn.Linear(2, 2), str(tmp_path), optimizer=optimizer)
    with pytest.raises(ValueError, match=r"weights.pth: expected .* with optimizer; got one without optimizer"):
        checkpointer.resume_or_load("", resume=True)
    checkpointer.resume_or_load(str(tmp_path / "weights.pth"), resume=False)  # as a start it is enough


def test_a_save_that_is_cut_short_leaves_the_last_one(checkpointer_class, tmp_path, monkeypatch):
    checkpointer = checkpointer_class(nn.Linear(2, 2), str(tmp_path))
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


def test_a_bare_state_dict(checkpointer_class, tmp_path):
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    checkpointer_class(other).load(str(tmp_path / "bare.pth"))
    assert torch.equal(model.weight, other.weight)
