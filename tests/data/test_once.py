import copy
import logging
import multiprocessing
import os
import pickle
import signal

import pytest

from a3d_det2.data.once import LogOnce

LOGGER = logging.getLogger(__name__)


class AsDetectron2Does:
    """Pickled in the way of what Detectron2's data loaders give to their workers."""

    def __init__(self, log):
        self.log = log

    def __reduce__(self):
        import cloudpickle

        return cloudpickle.loads, (cloudpickle.dumps(self.log),)

    def __call__(self, *arguments):
        self.log(*arguments)


def test_once_for_each_thing(caplog):
    log, other = LogOnce(LOGGER), LogOnce(LOGGER)
    for what in ("a", "b", "a", "b"):
        log(what, f"{what} is damaged")
    assert caplog.messages == ["a is damaged", "b is damaged"]
    assert (log.count(), other.count()) == (2, 0)
    other("a", "once more")
    assert caplog.messages[2:] == ["once more"]
    assert (caplog.records[2].name, caplog.records[2].levelname) == (__name__, "WARNING")


@pytest.mark.parametrize("give", [lambda log: log, AsDetectron2Does])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_share_it_however_they_are_started(method, give):
    if give is AsDetectron2Does:
        pytest.importorskip("cloudpickle")
    log = LogOnce(LOGGER)
    log("0.png", "damaged")
    counts = []
    for name in ("0.png", "1.png", "1.png", "2.png"):
        worker = multiprocessing.get_context(method).Process(target=give(log), args=(name, "damaged"))
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0
        counts.append(log.count())
    assert counts == [1, 2, 2, 3]


def kill_oneself(log):
    log("a", "damaged")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_blocks_nobody():
    log = LogOnce(LOGGER)
    worker = multiprocessing.get_context("fork").Process(target=kill_oneself, args=(log,))
    worker.start()
    worker.join(30)
    assert worker.exitcode == -signal.SIGKILL
    log("a", "damaged")
    log("b", "damaged")
    assert log.count() == 2


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda log: pickle.loads(pickle.dumps(log))])
def test_a_copy_begins_anew(make):
    log = LogOnce(LOGGER)
    log("a", "damaged")
    assert make(log).count() == 0
