from .split_evaluation import SplitEvaluation as Evaluation, compare, nan_to_none  # noqa: F401, I001 - an old path
