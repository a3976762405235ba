"""What the user has to change, a config, a file or a dataset: said in a sentence, with exit status 2."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ..files import printable

EXIT_STATUS = 2  # as argparse's
# By which configs, registries, weights and files say that they are wrong.
KINDS = (AssertionError, KeyError, OSError, ValueError)
DATA_FAULTS = (OSError, ValueError)  # and how slices, annotations and results do, in the middle of a training
TRAINING_FAULTS = (*DATA_FAULTS, FloatingPointError)  # and the training itself


class Mistake(ValueError):
    """Something that the user has to change; the message says what was expected, and what came."""


@contextmanager
def mistakes(where: str = "", kinds: tuple[type[Exception], ...] = KINDS) -> Iterator[None]:
    """Let what is raised within it be a :class:`Mistake`.

    Args:
        where: the beginning of the message, such as the name of a file.
        kinds: of exceptions; others pass as they are.
    """
    try:
        yield
    except Mistake:
        raise
    except kinds as error:
        raise Mistake(where + _sentence(error)) from error


def _sentence(error: Exception) -> str:
    """The message of an exception, without the traceback that a data loader puts into it."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Original Traceback (most recent call last):" in text:
        text = text.rstrip().rpartition("\n")[2].partition(": ")[2]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return text or f"{type(error).__name__} without a message, in {frame.filename}, line {frame.lineno}"


@contextmanager
def exit_on_mistakes() -> Iterator[None]:
    """End the process with :data:`EXIT_STATUS` where a :class:`Mistake` leaves it, or ended a process started by it.
    ``python -X dev`` shows its traceback."""
    try:
        yield
    except Mistake as error:
        if sys.flags.dev_mode:
            raise
        print(f"{os.path.basename(sys.argv[0])}: error: {printable(str(error))}", file=sys.stderr, flush=True)
    except Exception as error:
        # By its name, so that commands that need no torch do not load it.
        if type(error).__name__ != "ProcessExitedException" or error.exit_code != EXIT_STATUS:
            raise
    else:
        return
    sys.exit(EXIT_STATUS)
