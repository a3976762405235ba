"""A CT dataset that is not DeepLesion, in the lines that docs/custom_dataset.md has for it."""

import json
import os
import re

import pytest

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog

from a3d_det2 import Trainer, model_zoo, register_ct_coco
from tests.ct_dataset import CLASSES, convert
from tests.engine.conftest import TINY


@pytest.fixture
def nodes(phantom_root, tmp_path):
    for split in ("train", "test"):
        convert(phantom_root / "phantom", tmp_path / "nodes", split)
    yield tmp_path
    for name in ("nodes_train", "nodes_test"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def test_the_lines_of_the_documentation(repo, nodes, monkeypatch):
    text = (repo / "docs" / "custom_dataset.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line]) <= 10
    tiny = dict(zip(TINY[::2], TINY[1::2], strict=True))
    code = code.replace(
        "trainer = Trainer(cfg)",
        f"cfg.merge_from_list({[x for pair in tiny.items() for x in pair]})\ntrainer = Trainer(cfg)",
    )
    monkeypatch.chdir(nodes)
    exec(compile(code, "custom_dataset.md", "exec"), {})
    report = json.loads((nodes / "output" / "nodes" / "inference" / "froc.json").read_text())
    assert list(report["classes"]) == [CLASSES[number] for number in sorted(CLASSES)]
    assert report["classes"]["never"]["num_lesions"] == 0
    assert report["classes"]["small"]["num_lesions"] > 0
    assert os.path.exists("output/nodes/model_final.pth")


def test_too_few_classes_are_named(nodes):
    register_ct_coco(
        "nodes_train", str(nodes / "nodes/train.json"), str(nodes / "nodes/png"), number_pattern=r"slice(\d+)"
    )
    cfg = model_zoo.get_config("quick/a3d_7slice.yaml")
    cfg.merge_from_list([*TINY, "DATASETS.TRAIN", ("nodes_train",), "OUTPUT_DIR", str(nodes / "out")])
    with pytest.raises(
        ValueError, match=r"MODEL.ROI_HEADS.NUM_CLASSES: expected 3, for the classes never, small, large of"
    ):
        Trainer(cfg)


def test_other_classes_in_the_test_set_are_named(nodes):
    content = json.loads((nodes / "nodes/test.json").read_text())
    content["categories"] = [{**c, "name": c["name"].upper()} for c in content["categories"]]
    (nodes / "nodes/test.json").write_text(json.dumps(content))
    for split in ("train", "test"):
        folder = str(nodes / "nodes/png")
        register_ct_coco(f"nodes_{split}", str(nodes / f"nodes/{split}.json"), folder, number_pattern=r"slice(\d+)")
    cfg = model_zoo.get_config("quick/a3d_7slice.yaml")
    cfg.merge_from_list([*TINY, "DATASETS.TRAIN", ("nodes_train",), "MODEL.ROI_HEADS.NUM_CLASSES", 3])
    Trainer.build_train_loader(cfg)
    with pytest.raises(
        ValueError, match="Expected the classes of nodes_train, never, small, large, in nodes_test, got NEVER"
    ):
        Trainer.build_test_loader(cfg, "nodes_test")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    with pytest.raises(ValueError, match=r"NUM_CLASSES: expected 3, for the classes .* of nodes_test, got 4"):
        Trainer.build_test_loader(cfg, "nodes_test")
