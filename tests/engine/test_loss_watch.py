"""A loss that rises and stays is told; one that falls, jumps or is noisy is not."""

import logging
import re

import numpy as np
import pytest

from a3d_det2.engine.loss_watch import PATIENCE, WINDOW, LossWatch


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
