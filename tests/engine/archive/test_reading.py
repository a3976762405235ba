"""Processes that read ahead."""

import threading
import time

import numpy as np
import pytest

from a3d_det2.engine.archive.manifest import Item
from a3d_det2.engine.archive.reading import SPAWN, Failure, Reader, ending, receive_object, send_object
from tests.engine.archive.stubs import Stub


@pytest.fixture
def reader():
    reader = Reader(Stub().read, 20.0)
    yield reader
    reader.close()


def through(value):
    ours, theirs = SPAWN.Pipe()
    thread = threading.Thread(target=send_object, args=(ours, value))
    thread.start()
    received = receive_object(theirs)
    thread.join()
    return received


def test_objects_arrive_as_they_are():
    arrays = [
        np.arange(60, dtype=np.int16).reshape(3, 4, 5),
        np.arange(60).reshape(3, 4, 5)[:, ::-1, ::2],
        np.zeros((0, 4)),
        np.float32([1.5]),
    ]
    for one, other in zip(arrays, through(arrays), strict=True):
        assert other.dtype == one.dtype
        np.testing.assert_array_equal(one, other)
        other[...] = 1  # it may be written to
    assert through({"no": "array"}) == {"no": "array"}
    large = np.random.default_rng(0).integers(0, 9, (40, 512, 512), dtype=np.int16)
    np.testing.assert_array_equal(through(large), large)


def test_reads_and_fails(reader, tmp_path):
    for name, want in (
        ("a", f"{tmp_path}/a"),
        ("read_fails", Failure("ValueError", f"{tmp_path}/read_fails: no volume")),
    ):
        reader.begin(Item("1", f"{tmp_path}/{name}"))
        assert reader.take() == want
        assert reader.item is None


def test_a_crash_costs_one_item(reader, tmp_path):
    reader.begin(Item("1", f"{tmp_path}/read_dies"))
    message = f"{tmp_path}/read_dies: the process that read it was ended by SIGKILL"
    assert reader.take() == Failure("ProcessDied", message)
    reader.begin(Item("2", f"{tmp_path}/a"))
    assert reader.take() == f"{tmp_path}/a"


def test_a_file_system_that_hangs(tmp_path):
    reader = Reader(Stub().read, 3.0)
    reader.begin(Item("0", f"{tmp_path}/a"))
    assert reader.take() == f"{tmp_path}/a"
    start = time.monotonic()
    reader.begin(Item("1", f"{tmp_path}/read_hangs"))
    outcome = reader.take()
    assert outcome == Failure("ReadTimeout", f"{tmp_path}/read_hangs: not read within 3 s; does its file system hang?")
    assert time.monotonic() - start < 8
    reader.close()


def test_endings_in_words():
    assert [ending(code) for code in (None, 3, -9, -99)] == [
        "does not end",
        "ended with status 3",
        "was ended by SIGKILL",
        "was ended by signal 99",
    ]
