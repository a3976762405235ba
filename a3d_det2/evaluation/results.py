"""Another name of :mod:`.evaluation_files`."""

from .evaluation_files import *  # noqa: F403
