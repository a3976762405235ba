"""Loading that raises when weights do not fit, and saving that survives a kill at any moment, for every engine."""

import os
import pickle
import re

import torch
from fvcore.common.checkpoint import Checkpointer

from .modeling.densenet import DenseNet3D
from .modeling.pretrained import is_torchvision_densenet, load_torchvision_densenet

NOTHING = re.compile(r"(?!)")
_RPNS = ("proposal_generator.", "rpn.")  # of Detectron2 and torchvision
_OF_ONE_ENGINE = re.compile(r"(?!backbone\.(bottom_up|neck)\.)")


class StrictCheckpointer(Checkpointer):
    """fvcore's checkpointer that also

    1. loads torchvision's DenseNet into the trunk, from a file or URL,
    2. takes trunk, squeeze and fused neck of a model that was trained with the other engine, Detectron2 or torchvision,
       whose heads and FPN are new; the log names them,
    3. raises when weights do not fit, instead of logging it,
    4. raises when a training is to be resumed from a checkpoint without its optimizer or the like,
    5. puts each file under its name only when it is complete.
    """

    def __init__(self, model, save_dir: str = "", *, stem_weights: str = "middle", **checkpointables):
        """
        Args:
            model, save_dir, checkpointables: as for ``Checkpointer``.
            stem_weights: how a first convolution for three colours becomes grey, "middle" or "sum".
        """
        super().__init__(model, save_dir, **checkpointables)
        self._stem_weights = stem_weights

    def load(self, path: str, checkpointables: list[str] | None = None):
        """
        Raises:
            ValueError: if the file is no checkpoint, its weights do not fit or ``checkpointables``, by default all, are
                not in it; the message names it.
        """
        self._wanted = self.checkpointables if checkpointables is None else checkpointables
        try:
            return super().load(path, checkpointables)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _load_file(self, filename: str):
        try:
            checkpoint = super()._load_file(filename)
        except (RuntimeError, EOFError, AttributeError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(f"expected a checkpoint with a state dict, got an unreadable file ({error})") from error
        if not (isinstance(checkpoint, dict) and "model" in checkpoint):
            checkpoint = {"model": checkpoint}  # a bare state dict, as torchvision's
        if not isinstance(checkpoint["model"], dict):
            raise ValueError(f"expected a state dict, got a {type(checkpoint['model']).__name__}")
        return checkpoint

    def _load_model(self, checkpoint):
        """
        Raises:
            ValueError: if a key of the checkpoint or of the model is left over, or a shape differs.
        """
        state_dict = checkpoint["model"]
        missing = [name for name in self._wanted if name not in checkpoint]
        if missing:
            raise ValueError(
                f"expected a checkpoint to resume from, with {', '.join(self._wanted)}; got one without "
                f"{', '.join(missing)}. Is it of another engine? MODEL.WEIGHTS takes its trunk for a new training."
            )
        if is_torchvision_densenet(state_dict):
            trunks = [m for m in self.model.modules() if isinstance(m, DenseNet3D)]
            if len(trunks) != 1:
                raise ValueError(
                    "These are weights of a torchvision DenseNet; they need a model with one DenseNet3D trunk. "
                    f"{type(self.model).__name__} has {len(trunks)}."
                )
            load_torchvision_densenet(trunks[0], state_dict, self._stem_weights)
            return None
        self._convert_ndarray_to_tensor(state_dict)
        new, unused = self._convert(checkpoint)
        if {_rpn(state_dict), _rpn(self.model.state_dict())} == set(_RPNS):
            # Some layers of the heads have the same names, but other orders of the classes.
            checkpoint["model"] = {key: v for key, v in state_dict.items() if not _OF_ONE_ENGINE.match(key)}
            new = _OF_ONE_ENGINE
        return self._check(super()._load_model(checkpoint), new, unused)

    def _convert(self, checkpoint: dict) -> tuple[re.Pattern, re.Pattern]:
        """Rename and fit the weights of other models, in place.

        Returns:
            patterns of what the checkpoint may lack or have in another shape, and of what the model may lack.
        """
        return NOTHING, NOTHING

    def _check(self, incompatible, new: re.Pattern, unused: re.Pattern) -> None:
        shapes = {key: f"expected shape {want}, got {got}" for key, got, want in incompatible.incorrect_shapes}
        problems = {**dict.fromkeys(incompatible.missing_keys, "not in the checkpoint"), **shapes}
        accepted = [key for key in problems if new.match(key)]
        accepted += [key for key in incompatible.unexpected_keys if unused.match(key)]
        problems |= dict.fromkeys(incompatible.unexpected_keys, "not in the model")
        if len(accepted) < len(problems):
            raise ValueError(
                "The weights do not fit the model:\n  "
                + "\n  ".join(f"{key}: {problem}" for key, problem in problems.items() if key not in accepted)
            )
        if accepted:
            lines = "\n  ".join(f"{key}: {problems[key]}" for key in accepted)
            self.logger.info(f"Another model is the start of this one. Not taken over:\n  {lines}")

    def save(self, name: str, *, tag: bool = True, **kwargs) -> None:
        """
        Args:
            name: file name without ".pth".
            tag: whether ``--resume`` shall go on from this file.
            kwargs: extra data to save.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        torch.save({"model": self.model.state_dict(), **states, **kwargs}, f"{path}.part")
        os.replace(f"{path}.part", path)
        if tag:
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        with open(f"{path}.part", "w") as f:
            f.write(last_filename_basename)
        os.replace(f"{path}.part", path)


def _rpn(keys) -> str | None:
    return next((prefix for prefix in _RPNS if any(key.startswith(prefix) for key in keys)), None)
