"""Files given as MODEL.WEIGHTS that are damaged, of another kind, or meant to harm."""

import copy
import functools
import gzip
import http.server
import importlib
import io
import json
import os
import pickle
import threading
import zipfile
from hashlib import sha256
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

CLASSES = ["strict.StrictCheckpointer"]
if find_spec("detectron2") is not None:
    CLASSES.append("detectron2.LesionCheckpointer")


@pytest.fixture(params=CLASSES)
def checkpointer_class(request):
    """Of each engine."""
    module, name = request.param.split(".")
    return getattr(importlib.import_module(f"a3d_det2.checkpoint.{module}"), name)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch created",)


def saved(content, **how) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def strange_files() -> dict[str, bytes]:
    """Name of a file -> content, of which none is a checkpoint of a 2 x 2 linear layer."""
    good = nn.Linear(2, 2).state_dict()
    files = {}
    for kind, content in (("zip", saved(good)), ("legacy", saved(good, _use_new_zipfile_serialization=False))):
        for part in range(10):
            files[f"{kind}, {part} tenths.pth"] = content[: len(content) * part // 10]
        files[f"{kind}, zeros in the middle.pth"] = content[:100] + bytes(len(content) - 200) + content[-100:]
        files[f"{kind}, called a pickle.pkl"] = content
    zipped, archive = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as f:
        f.writestr("a.txt", "a")
    np.savez(archive, weight=np.ones((2, 2)), bias=np.ones(2))
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
    files |= {
        "page.pth": b"<html><body>404 Not Found</body></html>",
        "text.pth": b"weights",
        "text.pkl": b"weights",
        "data.pth": json.dumps({"weight": [[1, 2], [3, 4]]}).encode(),
        "gzip.pth": gzip.compress(saved(good)),
        "other.pth": zipped.getvalue(),
        "arrays.pth": archive.getvalue(),
        "script.pth": script.getvalue(),
        "noise.pth": np.random.default_rng(0).bytes(5000),
        "noise.pkl": np.random.default_rng(1).bytes(5000),
    }
    contents = {
        "none": None,
        "number": 3,
        "list": [1, 2],
        "tensor": torch.ones(2, 2),
        "no model": {"model": None},
        "a list as model": {"model": [1, 2]},
        "numbered": {1: torch.ones(2, 2), 2: torch.ones(2)},
        "numbers": {"weight": 1.0, "bias": 2.0},
        "text as weight": {"weight": "text", "bias": torch.ones(2)},
        "nested": {"model": {"weight": {"a": torch.ones(2)}}},
        "state_dict": {"state_dict": 3},
        "empty": {},
        "complex": {"weight": torch.ones(2, 2, dtype=torch.complex64), "bias": torch.ones(2)},
        "too small": {"weight": torch.ones(1, 2), "bias": torch.ones(2)},
        "too many": {**good, "more": torch.ones(2)},
        "too few": {"weight": torch.ones(2, 2)},
        "of another kind": {"features.conv0.weight": torch.ones(2)},
        "published": {"backbone.reductionz0.a": torch.ones(2), "strange": torch.ones(2)},
    }
    for name, content in contents.items():
        files[f"{name}.pth"] = saved(content)
        files[f"{name}.pkl"] = pickle.dumps({"model": _as_arrays(content), "__author__": "a stranger"})
        files[f"{name}, alone.pkl"] = pickle.dumps([_as_arrays(content)])
    files["no values.pth"] = saved({key: value.to("meta") for key, value in good.items()})
    files["other names.pkl"] = pickle.dumps({"conv1_w": np.ones(3), "blobs": {"conv2_w": np.ones(3)}})
    for name, content in (("alone", Harmful()), ("in a dict", {"model": Harmful(), "__author__": "a"})):
        files[f"harmful {name}.pkl"] = pickle.dumps(content)
        files[f"harmful {name}.pth"] = pickle.dumps(content)
        files[f"harmful {name}, saved by torch.pth"] = saved(content)
        files[f"harmful {name}, saved by torch before.pth"] = saved(content, _use_new_zipfile_serialization=False)
        files[f"harmful {name}.pyth"] = saved({"model_state": content})
    return files


def _as_arrays(content):
    if isinstance(content, dict):
        return {key: _as_arrays(value) for key, value in content.items()}
    return content.numpy() if isinstance(content, torch.Tensor) else content


FILES = strange_files()


def test_there_are_many():
    assert len(FILES) >= 50


@pytest.mark.parametrize("name", FILES)
def test_each_is_an_error_that_names_it_and_runs_nothing(checkpointer_class, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(FILES[name])
    model = nn.Linear(2, 2)
    checkpointer = checkpointer_class(model)
    with pytest.raises(ValueError, match=name) as error:
        checkpointer.load(str(path))
    assert len(str(error.value)) > len(str(path)) + 20
    assert os.listdir() == [name]


def strange_states(optimizer: dict) -> dict[str, object]:
    other = copy.deepcopy(optimizer)
    other["param_groups"][0]["params"] = [0]
    return {
        "number": 3,
        "list": [1],
        "empty": {},
        "no state": {"param_groups": optimizer["param_groups"]},
        "groups that are none": {"state": {}, "param_groups": 3},
        "other parameters": other,
        "no values": {**optimizer, "state": {0: {"momentum_buffer": torch.ones(2, 2, device="meta")}}},
    }


@pytest.mark.parametrize("name", strange_states(torch.optim.SGD([torch.ones(2)], 0.1).state_dict()))
def test_an_optimizer_of_another_kind(checkpointer_class, name, tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    content = {"model": model.state_dict(), "optimizer": strange_states(optimizer.state_dict())[name]}
    torch.save(content, tmp_path / "model.pth")
    (tmp_path / "last_checkpoint").write_text("model.pth")
    with pytest.raises(ValueError, match=r"model.pth: "):
        checkpointer_class(model, str(tmp_path), optimizer=optimizer).resume_or_load("", resume=True)


@pytest.mark.parametrize(
    "content", [b"", b"..", b"a/../model.pth", b"http://127.0.0.1:1/a.pth", b"/a.pth", b"\xff\xfe"]
)
def test_a_last_checkpoint_that_is_no_name_of_a_file(checkpointer_class, content, tmp_path):
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "last_checkpoint").write_bytes(content)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"last_checkpoint: expected the name|\.\.: there is no such"
    ):
        checkpointer_class(nn.Linear(2, 2), str(tmp_path)).resume_or_load("", resume=True)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Sends the half of a file where its name has "short" in it, and says its whole length or none."""

    def do_GET(self):
        with open(self.translate_path(self.path), "rb") as f:
            content = f.read()
        self.send_response(200)
        if "unsaid" not in self.path:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if "short" in self.path else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "server").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "server"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*.pth*") if not path.name.endswith(".lock"))


def test_the_hash_in_a_name_is_checked_each_time(checkpointer_class, server, tmp_path):
    content = saved(nn.Linear(2, 2).state_dict())
    digest = sha256(content).hexdigest()
    names = [f"linear-{digest[:8]}.pth", f"linear-{digest}.pth", "linear-20181010.pth", "linear.pth"]
    for name in names:
        (tmp_path / "server" / name).write_bytes(content)
        checkpointer_class(nn.Linear(2, 2)).load(f"{server}/{name}")
    assert files_in(tmp_path / "cache") == sorted(names)
    (cached,) = (tmp_path / "cache").rglob(names[0])
    cached.write_bytes(content[:-1] + b"!")
    with pytest.raises(ValueError, match=rf"{names[0]}: expected a file whose SHA-256 begins with {digest[:8]}"):
        checkpointer_class(nn.Linear(2, 2)).load(f"{server}/{names[0]}")
    assert not cached.exists()
    checkpointer_class(nn.Linear(2, 2)).load(f"{server}/{names[0]}")


@pytest.mark.parametrize("name", ["short.pth", "short-unsaid.pth", "short-0123abcd-unsaid.pth", "unsaid-0123abcd.pth"])
def test_a_short_or_another_file_is_not_kept(checkpointer_class, server, tmp_path, name):
    (tmp_path / "server" / name).write_bytes(saved(nn.Linear(2, 2).state_dict()))
    with pytest.raises((ValueError, OSError), match=r"\.pth: (expected a|cannot be downloaded .*retrieval incomplete)"):
        checkpointer_class(nn.Linear(2, 2)).load(f"{server}/{name}")
    assert files_in(tmp_path / "cache") == []


def test_a_url_that_leads_out_of_the_cache(checkpointer_class, server, tmp_path):
    with pytest.raises(ValueError, match=r"expected a URL without '\.\.', which would be written outside of the cache"):
        checkpointer_class(nn.Linear(2, 2)).load(f"{server}/../../{tmp_path.name}/outside.pth")
    assert files_in(tmp_path) == []


def test_a_page_that_is_not_there_is_named(checkpointer_class, server):
    with pytest.raises(OSError, match=r"/none.pth: cannot be downloaded .*"):
        checkpointer_class(nn.Linear(2, 2)).load(f"{server}/none.pth")


def test_a_scheme_that_nobody_knows(checkpointer_class):
    with pytest.raises(OSError, match=r"gopher://host/weights.pth"):
        checkpointer_class(nn.Linear(2, 2)).load("gopher://host/weights.pth")


def test_a_file_that_is_not_there(checkpointer_class, server, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.pth: there is no such file of weights"):
        checkpointer_class(nn.Linear(2, 2)).load(str(tmp_path / "none.pth"))
    with pytest.raises(OSError, match=r"http://127.0.0.1:1/none.pth: cannot be downloaded .*refused"):
        checkpointer_class(nn.Linear(2, 2)).load("http://127.0.0.1:1/none.pth")
