import importlib.util
import json
import os

import numpy as np
import pytest


@pytest.fixture(scope="module")
def measuring(repo):
    spec = importlib.util.spec_from_file_location("measuring", repo / "tools" / "measuring.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_steps_take_turns_after_a_round_to_warm_up(measuring):
    calls = []

    def measure(step):
        calls.append(step)
        return len(calls)

    assert measuring.alternate({"first": "a", "second": "b"}, 2, measure) == {"first": [3, 5], "second": [4, 6]}
    assert calls == ["a", "b"] * 3
    assert measuring.spread([3, 1, 9]) == (3, 1, 9)


def test_seconds(measuring):
    (seconds,) = measuring.alternate({"wait": lambda: measuring.time.sleep(0.05)}, 1)["wait"]
    assert 0.05 <= seconds < 1


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux tells what is occupied")
def test_peak_memory(measuring):
    if not measuring.torch.cuda.is_available():
        for count in (25_000_000, 5_000_000):  # the first, larger peak is not that of the second
            assert 0.9 < measuring.peak_memory(lambda count=count: np.ones(count)) / (8 * count) < 1.1


def test_json_tells_the_machine(measuring, tmp_path):
    measuring.write_json(tmp_path / "out.json", {"rows": [1]})
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["rows"] == [1]
    assert content["machine"]["torch"] == measuring.torch.__version__
