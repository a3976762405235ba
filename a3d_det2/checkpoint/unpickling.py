"""Pickled weights, as Detectron2's model zoo has them, read without running what else a pickle may hold."""

import pickle
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

_NUMBERS = "biufc"  # kinds of NumPy's dtypes: truth values, whole, real and complex numbers
_TEXT = "SU"


def read_pickle(path: str):
    """Read a pickle that holds NumPy arrays, numbers, text and containers alone; one of Python 2 as well.

    Python's own ``pickle.load`` calls whatever a file names, and arrays rebuilt by NumPy believe what a file says of
    their dtype. Here a name stands for one of a few functions that look at what they are given.

    Raises:
        ValueError: if it is no pickle, damaged, or names anything else; the message has the name.
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as f:
        try:
            return _Unpickler(f, encoding="latin1").load()
        except OSError:
            raise
        except Exception as error:  # a damaged pickle fails anywhere in its own little machine, or in what it calls
            raise ValueError(f"expected a pickle of arrays, numbers and text, got another file ({error})") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, *, encoding: str):
        super().__init__(file, encoding=encoding)
        self._names = _names()

    def find_class(self, module: str, name: str) -> Callable | None:
        try:
            return self._names[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is none of these") from None


def _names() -> dict[tuple[str, str], Callable | None]:
    """What a pickle may name, made anew for each: it can change attributes of what it names."""

    class DType:
        """A dtype of numbers or text, without the fields and flags that a pickle may claim it has."""

        def __init__(self, spec: str, align: bool = False, copy: bool = False):
            self.dtype = np.dtype(_text(spec))
            if self.dtype.kind not in _NUMBERS + _TEXT or not self.dtype.itemsize:  # of no bytes, any shape would do
                raise ValueError(f"expected a dtype of numbers or text, got {spec!r}")

        def __setstate__(self, state: tuple):
            if (order := _text(state[1])) in ("<", ">"):
                self.dtype = self.dtype.newbyteorder(order)

    class Array(np.ndarray):
        """An array that is filled by bytes of the right number."""

        is_filled = False

        def __setstate__(self, state: tuple):
            if self.is_filled:  # once more would free what a view of it, which a pickle can hold, looks at
                raise ValueError("expected an array that is filled once")
            self.is_filled = True
            _, shape, dtype, is_fortran, content = state
            content = content.encode("latin1") if isinstance(content, str) else content
            super().__setstate__((1, shape, _dtype(dtype), bool(is_fortran), bytes(memoryview(content))))

    def _dtype(dtype: DType) -> np.dtype:
        if not isinstance(dtype, DType):
            raise ValueError(f"expected a dtype, got {dtype!r}")
        return dtype.dtype

    def _text(text: str | bytes) -> str:
        return text.decode("ascii") if isinstance(text, bytes) else str(text)

    def reconstruct(kind: None, shape: tuple, typecode) -> Array:
        return Array(0, np.uint8)

    def from_buffer(content, dtype: DType, shape: tuple, order: str) -> np.ndarray:
        array = np.frombuffer(content, _dtype(dtype)).reshape(shape, order=order)
        return array.astype(array.dtype.newbyteorder("="), order="K")  # a copy, since the content cannot be written to

    def scalar(dtype: DType, content: str | bytes) -> np.generic:
        content = content.encode("latin1") if isinstance(content, str) else content
        return np.frombuffer(content, _dtype(dtype), count=1)[0]

    def encode(text: str, encoding: str = "latin1") -> bytes:
        """What pickles of protocol 2 hold bytes as."""
        if encoding != "latin1":
            raise ValueError(f"expected bytes as latin1, got {encoding!r}")
        return str(text).encode("latin1")

    # reconstruct is given numpy.ndarray, and nothing may call it.
    names = {("numpy", "ndarray"): None, ("numpy", "dtype"): DType, ("_codecs", "encode"): encode}
    for core in ("numpy.core", "numpy._core"):  # before and from NumPy 2 on
        names[f"{core}.multiarray", "_reconstruct"] = reconstruct
        names[f"{core}.multiarray", "scalar"] = scalar
        names[f"{core}.numeric", "_frombuffer"] = from_buffer
    for builtins in ("builtins", "__builtin__"):  # of Python 3 and 2
        names |= {(builtins, kind.__name__): kind for kind in (set, frozenset, complex, bytearray, bytes)}
    return {**names, ("collections", "OrderedDict"): OrderedDict}
