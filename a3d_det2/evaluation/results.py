from .evaluation_files import *  # noqa: F403 - an old path
