import os
import shutil

import pytest

from a3d_det2.data.preparation.command import main


def test_arguments_can_be_given(phantom_root, tmp_path, capsys):
    shutil.copytree(phantom_root / "phantom", tmp_path / "phantom")
    with pytest.raises(SystemExit) as end:
        main(["--output", str(tmp_path / "phantom"), "--workers", "1"])
    assert end.value.code == 0
    assert "Training can start.\nWeak masks: " in capsys.readouterr().out
    names = ["DL_info.csv", "Images_png", "check.json", "prepare.jsonl", "weak_masks.json"]
    assert sorted(os.listdir(tmp_path / "phantom")) == names


def test_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert "python datasets/prepare_deeplesion.py --source ~/Downloads/DeepLesion" in out
    assert "Exit status 0: training can start." in out


def test_no_csv(tmp_path):
    with pytest.raises(SystemExit, match=r"DL_info.csv is not there, and there is no DL_info.csv in --source"):
        main(["--output", str(tmp_path / "new"), "--workers", "1"])
