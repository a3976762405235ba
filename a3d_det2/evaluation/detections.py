from .detection_reader import *  # noqa: F403 - an old path
