import json
import os
import re
import shutil
import signal
import time

import pytest
import torch
from pycocotools import mask as coco_mask

from a3d_det2.engine import torchvision_loop
from a3d_det2.engine.mistakes import Mistake

TINY = """
MODEL.A3D.NUM_SLICES 3 MODEL.A3D.BLOCK_CONFIG [1,1,1] MODEL.A3D.GROWTH_RATE 8 MODEL.A3D.NUM_INIT_FEATURES 16
MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 16 MODEL.RPN.POST_NMS_TOPK_TRAIN 50
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
    assert scalars(out) == scalars(tmp_path / "whole")

    # Once it has ended, a resume evaluates again and trains no more.
    shutil.rmtree(out / "inference")
    before = os.path.getmtime(out / "model_final.pth")
    train("--resume", options=["SOLVER.CHECKPOINT_PERIOD", 5])
    assert os.path.getmtime(out / "model_final.pth") == before
    assert (out / "inference" / "froc.json").is_file()
    assert scalars(out) == scalars(tmp_path / "whole")


@pytest.mark.slow
def test_a_random_seed_and_a_changed_schedule_when_resumed(train, tmp_path):
    train(options=["SOLVER.MAX_ITER", 4, "SEED", -1])
    seed = torch.load(tmp_path / "out" / "model_final.pth")["seed"]
    train("--resume", options=["SOLVER.MAX_ITER", 20, "SOLVER.STEPS", "(10,)", "SOLVER.WARMUP_ITERS", 0, "SEED", -1])
    assert torch.load(tmp_path / "out" / "model_final.pth")["seed"] == seed
    assert scalars(tmp_path / "out")["lr"] == {20: pytest.approx(0.001)}


@pytest.mark.slow
def test_two_processes_train_and_report_what_one_process_does(train, tmp_path):
    train(processes=2, options=["SOLVER.MAX_ITER", 60, "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", 4])
    out = tmp_path / "out"
    both = [read(out / "inference" / name) for name in ("froc.json", "coco_instances_results.json")]
    train("--eval-only", output="one", options=["MODEL.WEIGHTS", out / "model_final.pth"])
    one = [read(tmp_path / "one" / "inference" / name) for name in ("froc.json", "coco_instances_results.json")]
    assert [d["image_id"] for d in both[1]] == [d["image_id"] for d in one[1]]
    for a, b in zip(both[1], one[1], strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)
    assert both[0]["sensitivity"] == one[0]["sensitivity"]
    assert both[0]["sensitivity"][-1] > 0  # there is something that could differ
    assert len({d["score"] for d in both[1]}) > 20


@pytest.mark.slow
def test_amp_on_the_cpu_and_an_operator_that_needs_the_thickness(train, tmp_path):
    options = ["SOLVER.AMP.ENABLED", True, "MODEL.A3D.OPERATOR", "alignshift", "INPUT.RESAMPLING", "thin"]
    train(options=[*options, "SOLVER.MAX_ITER", 3, "SEED", -1])
    model = torch.load(tmp_path / "out" / "model_final.pth")["model"]
    assert {value.dtype for value in model.values() if value.is_floating_point()} == {torch.float32}


def test_keys_that_there_are_not(repo):
    with pytest.raises(Mistake, match=r"retinanet_7slice.yaml: Non-existent config key: MODEL.RETINANET"):
        torchvision_loop.load_config(str(repo / "configs/a3d_retinanet_7slice.yaml"), [])
    with pytest.raises(Mistake, match=r"There is no key 'MODEL.RESNETS.DEPTH'"):
        torchvision_loop.load_config(str(repo / "configs/a3d_7slice.yaml"), ["MODEL.RESNETS.DEPTH", "50"])


def test_learning_rate(repo):
    """Of the published schedule."""
    solver = torchvision_loop.load_config(str(repo / "configs/a3d_7slice.yaml"), []).SOLVER
    rates = {i: torchvision_loop.learning_rate(solver, i) for i in (0, 250, 500, 25289, 25290, 44959, 44960)}
    expected = {0: 0.0002, 250: 0.0101, 500: 0.02, 25289: 0.02, 25290: 0.002, 44959: 0.002, 44960: 0.0002}
    assert rates == pytest.approx(expected)


class Recorder(torch.nn.Module):
    """In place of a detector: a loss of its one weight, or the detections it is given."""

    def __init__(self, found=None, loss=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.found, self.loss, self.calls = found, loss, []

    def forward(self, images, targets, thickness, output_sizes):
        self.calls.append((images, targets, thickness, output_sizes, torch.is_autocast_enabled("cpu")))
        return {"loss": self.weight.sum() * self.loss} if self.training else [self.found] * len(images)


@pytest.fixture
def cfg(repo, phantom_root, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(phantom_root))

    def make(*options):
        path = str(repo / "configs/quick/a3d_7slice.yaml")
        return torchvision_loop.load_config(path, [*TINY, "OUTPUT_DIR", str(tmp_path), *options])

    return make


def test_what_the_model_is_called_with():
    model, target = Recorder(), {"boxes": torch.zeros(0, 4)}
    batch = [(torch.zeros(3, 8, 8), target, 1.0, (9, 10), "a"), (torch.ones(3, 6, 8), target, 5.0, (11, 12), "b")]
    torchvision_loop.forward(model, batch, torch.device("cpu"))
    ((images, targets, thickness, output_sizes, _),) = model.calls
    assert [tuple(image.shape) for image in images] == [(3, 8, 8), (3, 6, 8)]
    assert len(targets) == 2
    assert thickness.tolist() == [1.0, 5.0]
    assert output_sizes == ((9, 10), (11, 12))


def test_detections_are_written_as_they_are_found(cfg, tmp_path):
    masks = torch.zeros(2, 1, 96, 96)
    masks[0, 0, 5:9, 3:5], masks[1] = 0.5, 0.49
    boxes, scores = torch.tensor([[1.0, 2, 11, 22], [3, 4, 5, 6]]), torch.tensor([0.75, 0.5])
    model = Recorder({"boxes": boxes, "labels": torch.tensor([1, 1]), "scores": scores, "masks": masks})
    metrics = torchvision_loop.evaluate(cfg(), model.train(), torch.device("cpu"))
    assert model.training
    results = read(tmp_path / "inference" / "coco_instances_results.json")
    assert len(results) == 2 * 6
    assert [result["category_id"] for result in results[:2]] == [0, 0]
    assert [result["bbox"] for result in results[:2]] == [[1, 2, 10, 20], [3, 4, 2, 2]]
    assert [coco_mask.area(result["segmentation"]) for result in results[:2]] == [8, 0]
    report = read(tmp_path / "inference" / "froc.json")
    assert "lesion type" in report["strata"]
    assert metrics["froc/avg"] == report["average"]
    assert all(not autocast for *_, autocast in model.calls)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_two_steps_by_hand(cfg, monkeypatch, amp, clip):
    """Of a loss with gradient 100: SGD with momentum 0.9 and weight decay 0.1, in a warm-up from 0.2 in 4 steps."""
    options = ["SOLVER.AMP.ENABLED", f"{amp}", "SOLVER.CLIP_GRADIENTS.ENABLED", f"{clip}", "SOLVER.MAX_ITER", "2"]
    options += ["SOLVER.WEIGHT_DECAY", "0.1", "SOLVER.WARMUP_ITERS", "4", "SOLVER.WARMUP_FACTOR", "0.2"]
    monkeypatch.setattr(torchvision_loop, "evaluate", lambda *_: {})
    model = Recorder(loss=100.0)
    checkpointer = torchvision_loop.StrictCheckpointer(model)
    torchvision_loop.train(cfg(*options), model, torch.device("cpu"), checkpointer, False, 0)
    gradient, weight, velocity = 5.0 if clip else 100.0, 1.0, 0.0
    for rate in (0.01 * 0.2, 0.01 * 0.4):
        velocity = 0.9 * velocity + gradient + 0.1 * weight
        weight -= rate * velocity
    assert model.weight.item() == pytest.approx(weight, rel=1e-5)
    assert [autocast for *_, autocast in model.calls] == [amp, amp]


def test_a_loss_that_is_not_finite(cfg):
    model = Recorder(loss=float("nan"))
    checkpointer = torchvision_loop.StrictCheckpointer(model)
    with pytest.raises(FloatingPointError, match="Iteration 1, with the images .*: The loss is nan"):
        torchvision_loop.train(cfg(), model, torch.device("cpu"), checkpointer, False, 0)


def test_stem_weights_come_from_the_config(repo, monkeypatch, tmp_path, phantom_root):
    made = []
    monkeypatch.setenv("DETECTRON2_DATASETS", str(phantom_root))
    monkeypatch.setattr(torchvision_loop, "train", lambda cfg, model, device, *rest: made.append(rest[0]))
    config = ["--config-file", str(repo / "configs/quick/a3d_7slice.yaml")]
    options = [*TINY, "OUTPUT_DIR", str(tmp_path), "MODEL.A3D.STEM_WEIGHTS", "sum"]
    monkeypatch.setattr("sys.argv", ["train_torchvision.py", *config, *options])
    torchvision_loop.main()
    assert made[0]._stem_weights == "sum"
