"""Another name of :mod:`.detection_reader`."""

from .detection_reader import *  # noqa: F403
