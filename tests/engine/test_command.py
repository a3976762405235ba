"""``a3d-train``, and outputs of version 0.1.0."""

import json
from importlib.util import find_spec

import pytest

from a3d_det2.engine import command, torchvision_loop

RUN = ["-c", "from a3d_det2.engine.command import main; main()"]
TINY = """
MODEL.A3D.NUM_SLICES 3 MODEL.A3D.BLOCK_CONFIG [1,1,1] MODEL.A3D.GROWTH_RATE 8 MODEL.A3D.NUM_INIT_FEATURES 16
MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 96
DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 2 SOLVER.STEPS () SOLVER.MAX_ITER 2
""".split()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["detectron2", "torchvision"])
def test_a_config_of_the_model_zoo_trains(start_training, tmp_path, engine):
    if engine == "detectron2":
        pytest.importorskip("detectron2")
    arguments = ["--engine", engine, "--config-file", "quick/a3d_7slice.yaml", "OUTPUT_DIR", tmp_path / "out", *TINY]
    start_training([*RUN, *arguments], wait=True)
    assert (tmp_path / "log.txt").read_text().startswith(f"Engine: {engine} (asked for)")
    assert (tmp_path / "out" / "model_final.pth").is_file()
    assert json.loads((tmp_path / "out" / "inference" / "froc.json").read_text())["num_images"] == 6


def test_the_engine_is_detectron2_where_it_is_installed(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(torchvision_loop, "main", called.append)
    monkeypatch.setattr(command, "detectron2_problem", lambda: "it is not installed")
    command.main(["--config-file", "a.yaml", "SEED", "1"])
    assert called == [["--config-file", "a.yaml", "SEED", "1"]]
    why = "Detectron2: it is not installed"
    assert capsys.readouterr().out == f"Engine: torchvision ({why}); --engine chooses detectron2 or torchvision\n"


@pytest.mark.parametrize("engine", ["launching", "torchvision_loop"])
def test_a_config_that_was_written_into_an_output_dir_before(repo, tmp_path, engine):
    """With the CLIP_TYPE and the INPUT.FORMAT that the configs had in 0.1.0."""
    if engine == "launching" and find_spec("detectron2") is None:
        pytest.skip("Detectron2 is not installed")
    import importlib

    from a3d_det2.config import clips_full_model

    load_config = importlib.import_module(f"a3d_det2.engine.{engine}").load_config
    text = load_config(str(repo / "configs/a3d_7slice.yaml"), []).dump()
    lines = [line for line in text.splitlines() if "FULL_MODEL" not in line]
    text = "\n".join(lines).replace("CLIP_TYPE: norm", "CLIP_TYPE: full_model").replace("FORMAT: BGR", "FORMAT: L")
    assert "full_model" in text
    assert "FORMAT: L" in text
    (tmp_path / "config.yaml").write_text(text)
    cfg = load_config(str(tmp_path / "config.yaml"), [])
    assert clips_full_model(cfg)
