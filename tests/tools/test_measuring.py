import importlib.util
import json

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


@pytest.mark.skipif("not __import__('os').path.exists('/proc/self/statm')", reason="Linux tells what is occupied")
def test_peak_memory(measuring):
    def step():
        for _ in range(50):  # in time for the samples
            np.ones(25_000_000)

    if not measuring.torch.cuda.is_available():
        assert 0.9 * 200e6 < measuring.peak_memory(step) < 2 * 200e6


def test_json_tells_the_machine(measuring, tmp_path):
    measuring.write_json(tmp_path / "out.json", {"rows": [1]})
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["rows"] == [1]
    assert content["machine"]["torch"] == measuring.torch.__version__
