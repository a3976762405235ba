"""The Python snippets of README.md, run as they stand there, one after the other."""

import re

import pytest

pytest.importorskip("detectron2")


def test_the_snippets_run(repo):
    snippets = re.findall(r"```python\n(.*?)```", (repo / "README.md").read_text(), re.DOTALL)
    assert len(snippets) == 3
    names = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert tuple(names["y"].shape) == (2, 1000, 7)
    assert "instances" in names["outputs"][0]
    assert {"loss_classifier", "loss_objectness"} <= names["losses"].keys()
    assert names["froc_sensitivities"](names["detections"], names["ground_truths"]).tolist() == [1.0] * 6
