"""Another name of :mod:`.split_evaluation`."""

from .split_evaluation import *  # noqa: F403
from .split_evaluation import SplitEvaluation as Evaluation  # noqa: F401
