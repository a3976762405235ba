from .report.figures import *  # noqa: F403 - an old path
