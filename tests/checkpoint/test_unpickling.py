import io
import os
import pickle
import pickletools
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from a3d_det2.checkpoint.unpickling import read_pickle

NUMBERS = scalar_dtypes().filter(lambda dtype: dtype.kind in "biufc")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("pickles") / "weights.pkl"


def read(path, content: bytes):
    path.write_bytes(content)
    return read_pickle(str(path))


@settings(deadline=None)
@given(
    NUMBERS.flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=4, min_side=0))),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
    st.booleans(),
)
def test_arrays_of_numbers_come_back(path, array, protocol, fortran):
    array = np.asfortranarray(array) if fortran else array
    found = read(path, pickle.dumps({"a": array, "again": array}, protocol))
    assert found["again"] is found["a"]
    assert isinstance(found["a"], np.ndarray)
    assert found["a"].dtype == array.dtype.newbyteorder("=")
    assert found["a"].flags.writeable
    np.testing.assert_array_equal(np.asarray(found["a"]), array)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_text_and_containers(path, protocol):
    content = {
        "numbers": [1, 10**30, 2.5, True, None, 1 + 2j, np.float32(0.5), np.int64(7)],
        "text": ["ä", b"bytes", bytearray(b"more")],
        "containers": [(1, 2), {3}, frozenset({4}), OrderedDict(a=1)],
        "arrays": [np.array(["ab", "c"]), np.array([b"ab", b"c"])],
    }
    found = read(path, pickle.dumps(content, protocol))
    for key in ("numbers", "text", "containers"):
        assert found[key] == content[key]
        assert list(map(type, found[key])) == list(map(type, content[key]))
    assert [array.tolist() for array in found["arrays"]] == [["ab", "c"], [b"ab", b"c"]]


def test_a_file_of_python_2(path):
    """As NumPy 1 wrote it there: protocol 2, bytes as text."""
    content = (
        b"\x80\x02}q\x00U\x01wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04"
        b"(K\x01K\x02\x85cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK"
        b"\x00tb\x89U\x08" + np.array([1, -2.5], "<f4").tobytes() + b"tbs."
    )
    pickletools.dis(content, out=io.StringIO())
    assert read(path, content)["w"].tolist() == [1, -2.5]


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def harmful() -> dict[str, bytes]:
    """Pickles that would write a file named "created", or break NumPy's memory."""
    create = (os.system, "touch created"), (exec, "open('created', 'w')"), (open, "created", "w")
    pickles = {call[0].__name__: pickle.dumps({"model": Call(*call)}) for call in create}
    pickles |= {f"{call[0].__name__}, protocol 0": pickle.dumps(Call(*call), 0) for call in create}
    for name in ("builtins.eval", "builtins.getattr", "builtins.__import__", "builtins.type", "builtins.list"):
        pickles[name] = b"c" + name.replace(".", "\n").encode() + b"\n."
    for name in (
        "numpy.load",
        "numpy.ndarray.tofile",
        "numpy._core.multiarray.fromfile",
        "numpy.f2py.compile",
        "os.open",
    ):
        module, _, function = name.rpartition(".")
        pickles[name] = f"c{module}\n{function}\n.".encode()
    pickles["a dotted name"] = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    pickles["an extension"] = b"\x80\x02\x82\x01."
    pickles["a persistent id"] = b"\x80\x02K\x01Q."
    pickles["an instance"] = b"(ios\nsystem\n."
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    for kind in ("O", "O8", "V8", "i4,O", "M8[s]", "{'names': ['a'], 'formats': ['O']}", "junk", "10000000000000f8"):
        dtype = b"cnumpy\ndtype\n(V" + kind.encode() + b"\nK\x00K\x01tR"
        pickles[f"an array of {kind}"] = reconstruct + b"(K\x01(K\x01t" + dtype + b"K\x00U\x08" + b"A" * 8 + b"tb."
        pickles[f"a scalar of {kind}"] = b"cnumpy.core.multiarray\nscalar\n(" + dtype + b"U\x08" + b"A" * 8 + b"tR."
    floats = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR"
    for shape, size in (
        (b"K\x02", 8),
        (b"J\xff\xff\xff\xff", 8),
        (b"\x8a\x08" + b"\xff" * 7 + b"\x7f", 8),
        (b"K\x01", 4),
    ):
        state = b"(K\x01(" + shape + b"t" + floats + b"K\x00U" + bytes([size]) + b"A" * size + b"tb."
        pickles[f"shape {shape!r} of {size} bytes"] = reconstruct + state
    nothing = b"cnumpy\ndtype\n(U\x02S0K\x00K\x01tR"
    pickles["a long array of nothing"] = reconstruct + b"(K\x01(\x8a\x06\0\0\0\0\0\x10t" + nothing + b"K\x00U\x00tb."
    pickles["a dtype that is text"] = reconstruct + b"(K\x01(K\x01tU\x02f8K\x00U\x08AAAAAAAAtb."
    pickles["numpy.ndarray called"] = b"cnumpy\nndarray\n(K\x08tR."
    twice = b"(K\x01(K\x01t" + floats + b"K\x00U\x08AAAAAAAAtb"
    pickles["an array that is filled twice"] = reconstruct + twice + twice + b"."
    pickles["a codec"] = b"c_codecs\nencode\n(Vabc\nVrot13\ntR."
    pickles["too deep"] = b"\x80\x02" + b"(" * 1000 + b"l" * 1000
    return pickles


HARMFUL = harmful()


@pytest.mark.parametrize("name", HARMFUL)
def test_nothing_else_is_made(path, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="expected a pickle of arrays, numbers and text"):
        read(path, HARMFUL[name])
    assert os.listdir() == []


def test_the_message_names_what_was_refused(path):
    with pytest.raises(ValueError, match=r"it names (posix|os).system, which is none of these"):
        read(path, HARMFUL["system"])


def test_fields_and_flags_that_a_file_claims_do_not_count(path):
    """A dtype of 8 bytes, said to hold objects: NumPy would take the bytes for addresses."""
    floats = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR"
    claims = b"(K\x03U\x01<N(U\x01at}U\x01a(" + floats + b"K\x00tsK\x08K\x01K?tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    state = b"(K\x01(K\x01tcnumpy\ndtype\n(U\x02u8K\x00K\x01tR" + claims + b"K\x00U\x08\x01" + bytes(7) + b"tb."
    found = read(path, array + state)
    assert (found.dtype, found.tolist()) == (np.uint64, [1])


def test_one_file_changes_nothing_for_the_next(path):
    """A pickle can set attributes of the functions that it names."""
    read(path, b"cnumpy.core.multiarray\nscalar\n(N}U\x0c__defaults__NstbN.")
    assert read(path, pickle.dumps(np.float64(2.5))) == 2.5


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: pickle.dumps([np.ones(3)])[:-1] + tail))
@settings(deadline=None)
def test_any_bytes_are_a_pickle_or_an_error(path, content):
    try:
        read(path, content)
    except ValueError as error:
        assert str(error).startswith("expected a pickle")  # noqa: PT017


def test_a_cut_file_is_an_error_wherever_it_ends(path):
    content = pickle.dumps({"model": {"a": np.ones(3, np.float32), "b": np.arange(4)}, "__author__": "test"})
    for length in range(len(content)):
        with pytest.raises(ValueError, match="expected a pickle"):
            read(path, content[:length])


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(OSError, match="none.pkl"):
        read_pickle(str(tmp_path / "none.pkl"))
    with pytest.raises(IsADirectoryError):
        read_pickle(str(tmp_path))
