import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")

SMALL = """
MODEL.A3D.BLOCK_CONFIG [1,1,1] MODEL.A3D.GROWTH_RATE 4 MODEL.A3D.NUM_INIT_FEATURES 8 MODEL.A3D.BN_SIZE 1
MODEL.FPN.OUT_CHANNELS 8 MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 4
MODEL.RPN.POST_NMS_TOPK_TRAIN 100
""".split()


def test_first_step(repo, phantom_root, tmp_path):
    command = [sys.executable, "tools/compare_published.py", "--images", "2", "--size", "96", "--draws", "1"]
    command += ["--json", tmp_path / "step.json", *SMALL]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(phantom_root)}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    columns = json.loads((tmp_path / "step.json").read_text())["columns"]
    default = columns["by default"]
    assert len(default) == 11
    assert columns["mask targets"]["loss_mask"] != default["loss_mask"]
    assert columns["mask targets"]["loss_rpn_cls"] == default["loss_rpn_cls"]
    assert columns["anchors"]["loss_rpn_loc"] != default["loss_rpn_loc"]
    assert columns["all, and initialisation"] != columns["all"]
    assert all(value > 0 for column in columns.values() for value in column.values())
    assert f"| loss_mask | {default['loss_mask']:.4g} |" in done.stdout
