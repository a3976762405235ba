"""A loss that rises and stays is told; one that falls, jumps or is noisy is not."""

import logging
import re

import numpy as np
import pytest

from a3d_det2.engine.loss_watch import LONG_WINDOW, PATIENCE, WINDOW, ChanceWatch, LossWatch


@pytest.fixture
def watch(caplog):
    """Gives it losses; returns what it has told."""

    def run(losses):
        watch = LossWatch()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for iteration, loss in enumerate(losses, 1):
                watch.add(iteration, float(loss))
        return [record.getMessage() for record in caplog.records]

    return run


def falling(count, end=0.3, seed=0):
    noise = np.random.default_rng(seed).normal(1, 0.3, count).clip(0.2)
    return (end + (1.4 - end) * np.exp(-np.arange(count) / 60)) * noise


def test_what_learns(watch):
    for seed in range(10):
        assert watch(falling(2000, seed=seed)) == []
    assert watch(falling(2000, end=0.001)) == []
    assert watch([0.9] * 500) == []
    assert watch([]) == []


def test_a_collapse(watch):
    """As one that happened: from 0.84 to 1.43, for good."""
    losses = np.concatenate([falling(100), np.full(200, 1.43)])
    (message,) = watch(losses)
    assert message.startswith(f"Iteration {100 + PATIENCE * WINDOW}: the loss has risen, and does not come back.")
    was, at = re.search(r"It is 1.43, and was (\S+) at iteration (\d+) ", message).groups()
    assert float(was) == pytest.approx(np.median(losses[80:100]), rel=1e-3)
    assert int(at) == 100
    assert "SOLVER.CLIP_GRADIENTS.CLIP_VALUE" in message


def test_worse_than_at_the_beginning(watch):
    """Such as with a learning rate of 100."""
    (message,) = watch([2.0, *np.geomspace(10, 1e9, 100)])
    assert message.startswith(f"Iteration {PATIENCE * WINDOW}: ")
    assert "was 2 at iteration 1" in message


def test_a_spike(watch):
    losses = falling(400)
    losses[200 : 200 + WINDOW] *= 20
    assert watch(losses) == []


def test_it_comes_back_and_rises_again(watch):
    low, high = np.full(5 * WINDOW, 0.5), np.full(5 * WINDOW, 2.0)
    assert len(watch(np.concatenate([low, high]))) == 1
    assert len(watch(np.concatenate([low, high, low, high]))) == 2


def test_a_loss_near_nothing(watch):
    """Many times what it was, and still nothing beside the beginning."""
    assert watch(np.concatenate([np.full(100, 1.0), np.full(100, 0.001), np.full(200, 0.05)])) == []
    assert len(watch(np.concatenate([np.full(100, 1.0), np.full(100, 0.001), np.full(200, 0.2)]))) == 1


def chance(caplog, losses, shares, classes=1):
    watch = ChanceWatch(len(losses), classes)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for iteration, (loss, share) in enumerate(zip(losses, shares, strict=True), 1):
            watch.add(iteration, loss, share)
    return [record.getMessage() for record in caplog.records]


def test_a_head_at_chance(caplog):
    """By hand: with a share of 0.25 the loss of who knows that alone is 0.562."""
    (message,) = chance(caplog, [0.5] * 300, [0.25] * 300)
    assert message.startswith(f"Iteration {150 + LONG_WINDOW}: the box head tells lesions from the rest hardly better")
    assert "Its loss is 0.5, by chance it would be 0.562" in message
    assert chance(caplog, [0.44] * 300, [0.25] * 300) == []  # 0.78 of it
    assert chance(caplog, [0.5] * 150 + [0.13] * 150, [0.25] * 300) == []  # it has learned in the second half
    assert chance(caplog, [0.5] * 60, [0.25] * 60) == []  # too short to say
    # Of 0.25 lesions in four classes who knows nothing has 0.562 + 0.25 log 4 = 0.909.
    assert chance(caplog, [0.6] * 300, [0.25] * 300, 4) == []
    assert len(chance(caplog, [0.8] * 300, [0.25] * 300, 4)) == 1


def test_regions_that_are_all_of_a_kind(caplog):
    for share in (0.0, 1.0):
        assert chance(caplog, [0.0] * 300, [share] * 300) == []


def test_annotations_of_other_images(start, tmp_path, phantom_root, monkeypatch, caplog):
    """The boxes of each image are those of another one: the box head can learn nothing, and that is said."""
    from a3d_det2.data.sample import SampleLoader

    loaded = SampleLoader.__call__

    def shuffled(self, record, *args, **kwargs):
        rng = np.random.default_rng(len(seen))
        seen.append(1)
        corners = rng.uniform(5, 60, (len(record["annotations"]), 2))
        boxes = [[*corner, *(corner + rng.uniform(15, 30, 2))] for corner in corners]
        annotations = [{"bbox": box, "category_id": 0} for box in boxes]
        return loaded(self, {**record, "annotations": annotations}, *args, **kwargs)

    seen = []
    monkeypatch.setattr(SampleLoader, "__call__", shuffled)
    options = ["SOLVER.MAX_ITER", "100", "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "INPUT.MIN_SIZE_TRAIN", "(96,)"]
    assert start(*options, "INPUT.MAX_SIZE_TRAIN", "96", "DATASETS.TEST", "()") is None
    log = caplog.text + (tmp_path / "out" / "log.txt").read_text()
    assert "Iteration 100: the box head tells lesions from the rest hardly better than by how frequent they are" in log
