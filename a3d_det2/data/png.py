"""One slice of DeepLesion: a 16-bit grey PNG whose values are HU + 32768."""

import numpy as np
from PIL import Image, UnidentifiedImageError

HU_OFFSET = 32768


class UnreadableSlice(ValueError):
    """A file that is there and is no complete slice."""


class NotSixteenBit(UnreadableSlice):
    """A readable image, but not one of HU."""


def read_png(path: str) -> np.ndarray:
    """Read a 16-bit grey PNG.

    Returns:
        (H, W) uint16, as stored.

    Raises:
        FileNotFoundError: if there is no such file.
        NotSixteenBit: if it is another kind of image, such as an 8-bit one.
        UnreadableSlice: if it is not a complete PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:  # other formats run programs, as EPS does
            image.load()
            mode, stored = image.mode, np.asarray(image)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such slice. Those of DeepLesion are Images_png/PPPPPP_SS_RR/NNN.png."
        ) from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UnreadableSlice(f"{path}: expected a complete 16-bit PNG, got an unreadable file ({error}).") from error
    if not (mode.startswith("I;16") or mode == "I"):  # "I" is what Pillow before 11 makes of a 16-bit grey PNG
        raise NotSixteenBit(
            f"{path}: expected a 16-bit grey PNG with HU + {HU_OFFSET}, got an image of mode {mode}. "
            "(The 8-bit Key_slices.zip of DeepLesion is windowed and holds no HU.)"
        )
    return stored.astype(np.uint16, copy=False)


def write_png(path: str, stored: np.ndarray) -> None:
    """Write a slice, (H, W) uint16; fast rather than small."""
    Image.fromarray(stored).save(path, compress_level=1)


def to_hu(stored: np.ndarray, out: np.ndarray | None = None, offset: float = HU_OFFSET) -> np.ndarray:
    """Turn uint16 as stored, HU + ``offset``, into HU: float32 of the same shape, written into ``out`` if given."""
    return np.subtract(stored, np.float32(offset), out=out, dtype=np.float32)
