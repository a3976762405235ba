"""Another name of :mod:`.report.figures`."""

from .report.figures import *  # noqa: F403
