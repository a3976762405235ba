"""Trainings on two machines under torchrun: the same losses as on one, killed processes, and a cable that is pulled."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests.engine import machines
from tests.engine.machines import ADDRESSES, two_machines

pytestmark = pytest.mark.slow
TWO = pytest.mark.skipif(bool(machines.problem()), reason=machines.problem() or "-")
ONE_ENGINE = pytest.mark.parametrize("engine", ["torchvision_loop"], indirect=True)  # as it is torchrun that is tested
SCRIPTS = {"launching": "train_net.py", "torchvision_loop": "tools/train_torchvision.py"}
OPTIONS = """
MODEL.DEVICE cpu MODEL.A3D.NUM_SLICES 3 MODEL.A3D.BLOCK_CONFIG [1,1,1] MODEL.A3D.GROWTH_RATE 8
MODEL.A3D.NUM_INIT_FEATURES 16 MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.RPN.POST_NMS_TOPK_TRAIN 50
INPUT.MIN_SIZE_TRAIN (96,) INPUT.MAX_SIZE_TRAIN 96 INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 96
DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 4 SOLVER.STEPS () SOLVER.WARMUP_ITERS 0 DATASETS.TEST () SEED 3
""".split()


@pytest.fixture
def command(engine, repo):
    """The command line of a training under torchrun."""
    script = SCRIPTS[engine.__name__.rpartition(".")[2]]

    def command(output, *torchrun, options=()):
        run = [sys.executable, "-m", "torch.distributed.run", *map(str, torchrun), str(repo / script)]
        changes = {**dict(zip(OPTIONS[::2], OPTIONS[1::2], strict=True)), "OUTPUT_DIR": str(output)}
        changes |= dict(zip(options[::2], map(str, options[1::2]), strict=True))
        return [*run, "--config-file", "quick/a3d_7slice.yaml", *(text for pair in changes.items() for text in pair)]

    return command


@pytest.fixture
def environment(phantom_root):
    return {**os.environ, "DETECTRON2_DATASETS": str(phantom_root), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def on_two(command, environment, tmp_path, repo):
    """Starts a training on two machines; the logs are in tmp_path/machine0.txt and machine1.txt."""
    started = []

    def start(two, output, *torchrun, options=()):
        for number, address in enumerate(ADDRESSES):
            how = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
            # Namespaces share a host name, by which torchrun would find out which of them the endpoint is.
            how += ["--rdzv-endpoint", f"{ADDRESSES[0]}:29400", "--rdzv-conf", f"is_host={1 - number}"]
            how += ["--local-addr", address]
            line = two.command(number, *command(output, *how, *torchrun, options=options))
            with open(tmp_path / f"machine{number}.txt", "a") as log:
                settings = {**environment, **two.environment(number)}
                started.append(
                    subprocess.Popen(line, env=settings, stdout=log, stderr=log, cwd=repo, start_new_session=True)
                )
        return started[-2:]

    yield start
    for process in started:
        end(process)


def scalars(folder) -> dict[str, list[float]]:
    """The losses that a training has written, by name: one entry for each time."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if (folder / "metrics.json").is_file():
        lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        return {name: [line[name] for line in lines] for name in lines[0] if "loss" in name}
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [one.value for one in events.Scalars(name)] for name in events.Tags()["scalars"] if "loss" in name}


def ends_well(process, log, seconds=240):
    try:
        assert process.wait(seconds) == 0, log.read_text()[-4000:]
    except subprocess.TimeoutExpired:
        raise AssertionError(log.read_text()[-4000:]) from None


def processes_of(session) -> list[int]:
    """The training processes under a torchrun."""
    found = subprocess.run(["pgrep", "-P", str(session), "-f", "OUTPUT_DIR"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def end(process) -> None:
    """End a torchrun with the processes that it has started, which have sessions of their own."""
    for number in [*processes_of(process.pid), process.pid] if process.poll() is None else ():
        os.kill(number, signal.SIGKILL)
    process.wait()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def iteration(folder) -> int:
    """Of the last checkpoint; -1 if there is none."""
    mark = folder / "last_checkpoint"
    return torch.load(folder / mark.read_text(), mmap=True)["iteration"] if mark.is_file() else -1


@TWO
def test_two_machines_train_as_one_does(command, environment, on_two, tmp_path, repo):
    options = ["SOLVER.MAX_ITER", 60]
    one = command(tmp_path / "one", "--standalone", "--nproc-per-node", "2", options=options)
    subprocess.run(one, env=environment, cwd=repo, check=True, capture_output=True, timeout=240)
    with two_machines() as two:
        for number, process in enumerate(on_two(two, tmp_path / "two", options=options)):
            ends_well(process, tmp_path / f"machine{number}.txt")
    first, second = scalars(tmp_path / "one"), scalars(tmp_path / "two")
    assert first.keys() == second.keys()
    assert len(first["total_loss"]) == 3
    for name, values in first.items():
        np.testing.assert_allclose(second[name], values, atol=1e-4, err_msg=name)
    assert sorted(name for name in os.listdir(tmp_path / "two") if name.endswith(".pth")) == ["model_final.pth"]


@TWO
def test_a_process_of_the_second_machine_is_killed(on_two, tmp_path):
    out = tmp_path / "out"
    with two_machines() as two:
        options = ["SOLVER.MAX_ITER", 60, "SOLVER.CHECKPOINT_PERIOD", 5]
        both = on_two(two, out, "--max-restarts", "3", options=options)
        wait_for(lambda: iteration(out) >= 9)
        os.kill(wait_for(lambda: processes_of(both[1].pid))[0], signal.SIGKILL)
        for number, process in enumerate(both):
            ends_well(process, tmp_path / f"machine{number}.txt")
    assert torch.load(out / "model_final.pth")["iteration"] == 59
    names = sorted(name for name in os.listdir(out) if re.fullmatch(r"model_\d+\.pth", name))
    assert names[:11] == [f"model_{number:07d}.pth" for number in range(4, 55, 5)]
    texts = [(tmp_path / f"machine{number}.txt").read_text() for number in range(2)]
    assert "exitcode: -9" in texts[1]
    assert not (out / "last_checkpoint.before").exists()
    assert re.search(rf"Loading from {out}/model_\d+\.pth", "".join([*texts, (out / "log.txt").read_text()]))


@TWO
@ONE_ENGINE
def test_a_cable_that_is_pulled_for_a_while(on_two, tmp_path):
    out = tmp_path / "out"
    with two_machines() as two:
        options = ["SOLVER.MAX_ITER", 60, "SOLVER.CHECKPOINT_PERIOD", 5]
        both = on_two(two, out, "--max-restarts", "3", options=options)
        wait_for(lambda: iteration(out) >= 9)
        two.cable("down")
        time.sleep(30)
        assert all(process.poll() is None for process in both)
        assert iteration(out) < 59
        two.cable("up")
        for number, process in enumerate(both):
            ends_well(process, tmp_path / f"machine{number}.txt")
    assert torch.load(out / "model_final.pth")["iteration"] == 59


@TWO
@ONE_ENGINE
def test_a_cable_that_is_pulled_for_ever(on_two, tmp_path):
    """The processes of both end by themselves, with what they waited for. What was reached is kept."""
    out = tmp_path / "out"
    with two_machines() as two:
        options = ["SOLVER.MAX_ITER", 2000, "SOLVER.CHECKPOINT_PERIOD", 5, "SOLVER.PROCESS_TIMEOUT", 15]
        both = on_two(two, out, options=options)
        wait_for(lambda: iteration(out) >= 9)
        assert all(processes_of(process.pid) for process in both)
        two.cable("down")
        wait_for(lambda: not any(processes_of(process.pid) for process in both), 90)
    texts = [(tmp_path / f"machine{number}.txt").read_text() for number in range(2)]
    assert any("Timed out waiting 15000ms" in text for text in texts)
    assert iteration(out) >= 9


def test_killed_twenty_times(engine, command, environment, tmp_path, repo):
    """A random one of two processes, at any moment of one training; with torchvision five times."""
    kills = 20 if hasattr(engine, "Trainer") else 5
    out, rng = tmp_path / "out", random.Random(0)
    options = ["SOLVER.MAX_ITER", 150, "SOLVER.CHECKPOINT_PERIOD", 2]
    line = command(out, "--standalone", "--nproc-per-node", "2", "--max-restarts", "40", options=options)
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(line, env=environment, stdout=log, stderr=log, cwd=repo, start_new_session=True)
    try:
        for _ in range(kills):
            reached = iteration(out)
            wait_for(lambda at=reached: iteration(out) > at + 2 or process.poll() is not None)
            assert process.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
            time.sleep(rng.random() * 0.2)
            os.kill(rng.choice(wait_for(lambda: processes_of(process.pid))), signal.SIGKILL)
        ends_well(process, tmp_path / "log.txt")
    finally:
        end(process)
    assert torch.load(out / "model_final.pth")["iteration"] == 149
    text = (tmp_path / "log.txt").read_text()
    assert text.count("exitcode: -9") >= kills // 2  # some hit a process that torchrun was about to end
    assert not list(out.glob("*.part"))  # each start after a kill removes what it left
