import json
import os
import re
import shutil
import signal
import time

import pytest
import torch

TINY = """
MODEL.A3D.NUM_SLICES 3 MODEL.A3D.BLOCK_CONFIG [1,1,1] MODEL.A3D.GROWTH_RATE 8 MODEL.A3D.NUM_INIT_FEATURES 16
MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.RPN.POST_NMS_TOPK_TRAIN 50
INPUT.MIN_SIZE_TRAIN (96,) INPUT.MAX_SIZE_TRAIN 96 INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 96
DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 2 SOLVER.STEPS (35,) SOLVER.WARMUP_ITERS 30 SOLVER.MAX_ITER 40
""".split()


@pytest.fixture
def train(start_training, tmp_path):
    """Run the script on the small phantom; the output goes to tmp_path/``output``."""

    def start(*arguments, output="out", options=(), processes=1, wait=True):
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
        script = [*launcher, "tools/train_torchvision.py", "--config-file", "configs/quick/a3d_7slice.yaml"]
        return start_training([*script, *arguments, "OUTPUT_DIR", tmp_path / output, *TINY, *options], wait)

    return start


def read(path):
    return json.loads(path.read_text())


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


@pytest.mark.slow
def test_train_evaluate_and_evaluate_again(train, tmp_path):
    out = tmp_path / "out"
    options = ["TEST.EVAL_PERIOD", 20, "SOLVER.CHECKPOINT_PERIOD", 20, "MODEL.MASK_ON", True]
    train(options=[*options, "DATASETS.TEST", '("phantom_val","phantom_test")'])
    assert {"model_0000019.pth", "model_final.pth", "config.yaml", "log.txt"} <= set(os.listdir(out))
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    for split in ("phantom_val", "phantom_test"):
        assert {"froc.json", "froc.png", "coco_instances_results.json"} == set(os.listdir(out / "inference" / split))
    results = read(out / "inference" / "phantom_test" / "coco_instances_results.json")
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert results[0]["segmentation"]["size"] == [96, 96]
    report = read(out / "inference" / "phantom_test" / "froc.json")
    assert report["num_images"] == 6

    written = scalars(out)
    assert {"total_loss", "loss_mask", "loss_objectness", "lr"} <= written.keys()
    # The rate is that of the step: the 20th is number 19 from 0, in the warm-up; the 40th is after STEPS.
    assert written["lr"] == {20: pytest.approx(0.01 * (0.01 + 0.99 * 19 / 30)), 40: pytest.approx(0.001)}
    assert list(written["phantom_val/froc/avg"]) == [20, 40]
    assert written["phantom_test/froc/avg"][40] == pytest.approx(report["average"])

    weights = ["MODEL.WEIGHTS", out / "model_final.pth", "MODEL.MASK_ON", True]
    train("--eval-only", output="again", options=weights)
    assert read(tmp_path / "again" / "inference" / "froc.json") == report


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_weights(train, tmp_path):
    train(output="whole", options=["SOLVER.CHECKPOINT_PERIOD", 5])
    whole = torch.load(tmp_path / "whole" / "model_final.pth")
    out, reached = tmp_path / "out", -1
    for kill in range(2):
        process = train("--resume", options=["SOLVER.CHECKPOINT_PERIOD", 5], wait=False)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            tag = out / "last_checkpoint"
            done = int(re.sub(r"\D", "", tag.read_text()) or 40) if tag.exists() else -1
            if done > reached:
                time.sleep(0.1 * kill)
                break
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reached = int(re.sub(r"\D", "", (out / "last_checkpoint").read_text()) or 40)
    assert reached < 39
    train("--resume", options=["SOLVER.CHECKPOINT_PERIOD", 5])
    resumed = torch.load(out / "model_final.pth")
    assert resumed["iteration"] == whole["iteration"] == 39
    assert all(torch.equal(value, resumed["model"][key]) for key, value in whole["model"].items())
    assert read(out / "inference" / "froc.json") == read(tmp_path / "whole" / "inference" / "froc.json")

    # Once it has ended, a resume evaluates again and trains no more.
    shutil.rmtree(out / "inference")
    before = os.path.getmtime(out / "model_final.pth")
    train("--resume", options=["SOLVER.CHECKPOINT_PERIOD", 5])
    assert os.path.getmtime(out / "model_final.pth") == before
    assert (out / "inference" / "froc.json").is_file()


@pytest.mark.slow
def test_two_processes_train_and_report_what_one_process_does(train, tmp_path):
    train(processes=2, options=["SOLVER.MAX_ITER", 150, "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", 4])
    out = tmp_path / "out"
    both = [read(out / "inference" / name) for name in ("froc.json", "coco_instances_results.json")]
    train("--eval-only", output="one", options=["MODEL.WEIGHTS", out / "model_final.pth"])
    one = [read(tmp_path / "one" / "inference" / name) for name in ("froc.json", "coco_instances_results.json")]
    assert [d["image_id"] for d in both[1]] == [d["image_id"] for d in one[1]]
    for a, b in zip(both[1], one[1], strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)
    assert both[0]["sensitivity"] == one[0]["sensitivity"]
    assert both[0]["average"] > 0.05  # it has learned something that could differ


@pytest.mark.slow
def test_amp_on_the_cpu_and_an_operator_that_needs_the_thickness(train, tmp_path):
    options = ["SOLVER.AMP.ENABLED", True, "MODEL.A3D.OPERATOR", "alignshift", "INPUT.RESAMPLING", "thin"]
    train(options=[*options, "SOLVER.MAX_ITER", 3, "SEED", -1])
    model = torch.load(tmp_path / "out" / "model_final.pth")["model"]
    assert {value.dtype for value in model.values() if value.is_floating_point()} == {torch.float32}


def test_keys_that_there_are_not(train_torchvision, repo):
    with pytest.raises(KeyError, match=r"Non-existent config key: MODEL.RETINANET"):
        train_torchvision.load_config(str(repo / "configs/a3d_retinanet_7slice.yaml"), [])
    with pytest.raises(AssertionError, match=r"Non-existent key: MODEL.RESNETS.DEPTH"):
        train_torchvision.load_config(str(repo / "configs/a3d_7slice.yaml"), ["MODEL.RESNETS.DEPTH", "50"])


def test_a_batch_that_cannot_be_divided(train_torchvision, repo, monkeypatch):
    cfg = train_torchvision.load_config(str(repo / "configs/quick/a3d_7slice.yaml"), ["SOLVER.IMS_PER_BATCH", "3"])
    monkeypatch.setattr(train_torchvision, "WORLD", 2)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH must be divisible by the 2 processes. Got 3 instead!"):
        train_torchvision.train(cfg, None, None, None, False, 0)
