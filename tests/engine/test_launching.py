import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from torch import distributed

from a3d_det2 import Trainer, add_a3d_config
from a3d_det2.engine import launching
from tests.damage import truncate

TINY = """
MODEL.A3D.NUM_SLICES 3 MODEL.A3D.BLOCK_CONFIG [1,1,1] MODEL.A3D.GROWTH_RATE 8 MODEL.A3D.NUM_INIT_FEATURES 16
MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.RPN.POST_NMS_TOPK_TRAIN 50
INPUT.MIN_SIZE_TRAIN (96,) INPUT.MAX_SIZE_TRAIN 96 INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 96
DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 2 SOLVER.STEPS () SOLVER.WARMUP_ITERS 0
""".split()


@pytest.fixture
def train_net(start_training, tmp_path):
    """Start train_net.py on the small phantom; the output goes to tmp_path/out."""

    def start(*arguments, options=(), wait=True):
        script = ["train_net.py", "--config-file", "configs/quick/a3d_7slice.yaml"]
        return start_training([*script, *arguments, "OUTPUT_DIR", tmp_path / "out", *TINY, *options], wait)

    return start


def read(path):
    return json.loads(path.read_text())


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]


@pytest.mark.slow
def test_train_evaluate_and_evaluate_again(train_net, tmp_path):
    out = tmp_path / "out"
    options = ["SOLVER.MAX_ITER", 6, "TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 4, "VIS_PERIOD", 2]
    train_net(options=[*options, "DATASETS.TEST", '("phantom_val","phantom_test")'])
    assert {"model_0000003.pth", "model_final.pth", "model_best.pth", "config.yaml", "log.txt"} <= set(os.listdir(out))
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    assert any(name.startswith("events.out.tfevents") for name in os.listdir(out))
    log = (tmp_path / "log.txt").read_text()
    found = re.findall(r"phantom_val/froc/avg = ([\d.]+) at iteration (\d+)", log)
    values = {int(iteration): float(value) for value, iteration in found}
    assert sorted(values) == [1, 3, 6]
    assert {"phantom_val/froc/avg", "phantom_test/froc/sensitivity_0.5"} <= metrics(out)[-1].keys()
    for split in ("phantom_val", "phantom_test"):
        assert {"froc.json", "froc.png", "coco_instances_results.json"} == set(os.listdir(out / "inference" / split))
    assert "Avg." in log

    best = torch.load(out / "model_best.pth")
    assert best["phantom_val/froc/avg"] == pytest.approx(max(values.values()), abs=1e-4)
    train_net("--eval-only", options=["MODEL.WEIGHTS", out / "model_final.pth"])
    assert read(out / "inference" / "froc.json") == read(out / "inference" / "phantom_test" / "froc.json")


@pytest.mark.slow
def test_two_processes_train_and_report_what_one_process_does(train_net, tmp_path):
    out = tmp_path / "out"
    two = ["--num-gpus", "2", "--dist-url", "auto"]
    train_net(*two, options=["SOLVER.MAX_ITER", 150])
    in_training = (out / "inference" / "froc.json", out / "inference" / "coco_instances_results.json")
    in_training = [read(path) for path in in_training]
    for arguments in (two, []):
        train_net("--eval-only", *arguments, options=["MODEL.WEIGHTS", out / "model_final.pth"])
        report, detections = (read(out / "inference" / n) for n in ("froc.json", "coco_instances_results.json"))
        assert report == in_training[0]
        assert [d["image_id"] for d in detections] == [d["image_id"] for d in in_training[1]]
        for one, other in zip(detections, in_training[1], strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert report["num_images"] == 6
    assert report["average"] > 0.1  # it has learned something that could differ
    assert len({d["image_id"] for d in detections}) == 6


@pytest.mark.slow
def test_torchrun_joins_its_processes_as_launch_does(repo, phantom_root, tmp_path):
    """The same training by Detectron2's launch and by torchrun: the same losses."""
    options = ["MODEL.A3D.BLOCK_CONFIG", "[1,1,1]", "SOLVER.MAX_ITER", "4", "DATALOADER.NUM_WORKERS", "0", "SEED", "3"]
    options += ["SOLVER.STEPS", "()", "DATASETS.TEST", "()", "OUTPUT_DIR"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(phantom_root), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["train_net.py", "--config-file", "configs/quick/a3d_7slice.yaml"]
    losses = []
    for name, command in (
        ("launch", [*script, "--num-gpus", "2", "--dist-url", "auto"]),
        ("torchrun", [*torchrun, *script]),
    ):
        command = [sys.executable, *command, *options, str(tmp_path / name)]
        done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        (last,) = metrics(tmp_path / name)
        losses.append({key: value for key, value in last.items() if "loss" in key})
    assert len(losses[0]) >= 5
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_torchrun_and_launch_together(monkeypatch, capsys, phantom_root):
    monkeypatch.setattr(distributed, "is_torchelastic_launched", lambda: True)
    config = ["--config-file", "quick/a3d_7slice.yaml"]
    for sizes, arguments, message in (
        (
            "2",
            ["--num-gpus", "2"],
            "Expected --num-gpus and --num-machines with Detectron2's own launch alone, as torch",
        ),
        ("x", [], "WORLD_SIZE and LOCAL_WORLD_SIZE, as torchrun sets them: invalid literal"),
    ):
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.setenv(name, sizes)
        with pytest.raises(SystemExit, match="2"):
            launching.main([*config, *arguments])
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_mistake_in_one_of_two_processes_ends_both(repo, phantom_root, tmp_path):
    shutil.copytree(phantom_root / "phantom", tmp_path / "phantom")
    for path in (tmp_path / "phantom" / "Images_png").rglob("*.png"):
        truncate(path)
    command = [sys.executable, "train_net.py", "--config-file", "configs/quick/a3d_7slice.yaml", "--num-gpus", "2"]
    command += ["--dist-url", "auto", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(tmp_path / "out")]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "error: " in done.stderr
    assert "png: expected a complete 16-bit PNG" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_and_ends_at_the_same_iteration(train_net, tmp_path):
    out = tmp_path / "out"
    options = ["SOLVER.MAX_ITER", 30, "SOLVER.CHECKPOINT_PERIOD", 3, "TEST.EVAL_PERIOD", 6]
    reached = -1
    for kill in range(2):
        process = train_net("--resume", options=options, wait=False)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            tag = out / "last_checkpoint"
            done = torch.load(out / tag.read_text(), mmap=True)["iteration"] if tag.exists() else -1
            if done > reached:
                time.sleep(0.07 * kill)
                break
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reached = torch.load(out / (out / "last_checkpoint").read_text(), mmap=True)["iteration"]
    assert 0 <= reached < 29
    train_net("--resume", options=options)
    log = (tmp_path / "log.txt").read_text()
    assert f"Starting training from iteration {reached + 1}" in log
    final = torch.load(out / "model_final.pth")
    assert final["iteration"] == 29
    assert final["trainer"]["iteration"] == 29
    assert (out / "inference" / "froc.json").is_file()
    assert max(m["iteration"] for m in metrics(out)) == 30

    # Once it has ended, a resume evaluates again and trains no more.
    train_net("--resume", options=options)
    assert torch.load(out / "model_final.pth")["iteration"] == 29


@pytest.mark.slow
def test_training_without_a_test_set(train_net, tmp_path):
    train_net(options=["SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()"])
    assert (tmp_path / "out" / "model_final.pth").is_file()
    assert not (tmp_path / "out" / "inference").exists()


def test_gradients_are_clipped_over_the_full_model(repo):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / "configs/a3d_7slice.yaml"))
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 5.0
    optimizer = Trainer.build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full((2, 2), 100.0)
    optimizer.step()
    total = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
    assert total == pytest.approx(5.0, rel=1e-4)
    cfg.SOLVER.CLIP_GRADIENTS.FULL_MODEL = False  # Detectron2's own: each parameter by itself
    optimizer = Trainer.build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full((2, 2), 100.0)
    optimizer.step()
    assert model[0].weight.grad.norm() == pytest.approx(5.0, rel=1e-4)


def test_schedule_is_the_published_one(repo):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / "configs/a3d_7slice.yaml"))
    optimizer = Trainer.build_optimizer(cfg, torch.nn.Linear(2, 2))
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    rates = {}
    for iteration in range(45000):
        rates[iteration] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.0002)
    assert rates[250] == pytest.approx(0.0101)
    assert rates[500] == rates[25289] == pytest.approx(0.02)
    assert rates[25290] == rates[44959] == pytest.approx(0.002)
    assert rates[44960] == pytest.approx(0.0002)
    assert pytest.approx(cfg.SOLVER.MAX_ITER, rel=1e-3) == 22478 * 20 / 8
    # Scaled to one GPU: a batch of 1, an eighth of the learning rate, eight times the iterations.
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    one = Trainer.auto_scale_workers(cfg, 1)
    assert (one.SOLVER.IMS_PER_BATCH, one.SOLVER.BASE_LR, one.SOLVER.MAX_ITER) == (1, 0.0025, 8 * 56200)


@pytest.mark.slow
def test_full_setup_trains_at_512_px_within_12_gb(repo, tmp_path):
    """The published a3d, 7-slice network: steps with gradients and momentum, and an evaluation."""
    phantom = ["--output", tmp_path / "deeplesion", "--size", "512", "--train", "2", "--val", "1", "--test", "0"]
    subprocess.run(
        [sys.executable, repo / "datasets/make_phantom.py", *phantom, "--context", "6"], check=True, cwd=repo
    )
    code = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]).returncode; "
        "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done)"
    )
    options = [
        "MODEL.DEVICE",
        "cpu",
        "SOLVER.IMS_PER_BATCH",
        "1",
        "SOLVER.MAX_ITER",
        "2",
        "DATALOADER.NUM_WORKERS",
        "0",
    ]
    options += ["DATALOADER.NUM_WORKERS", "0", "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(tmp_path / "out")]
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            sys.executable,
            "train_net.py",
            "--config-file",
            "configs/a3d_7slice.yaml",
            *options,
        ],
        capture_output=True,
        text=True,
        cwd=repo,
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert int(run.stdout.split("peak ")[1]) / 2**20 < 12  # KiB -> GiB
    assert (tmp_path / "out" / "inference" / "froc.json").is_file()
