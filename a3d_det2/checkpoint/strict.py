"""Loading that raises when weights do not fit, and saving that survives a kill at any moment, for every engine."""

import errno
import os
import re
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from fvcore.common.checkpoint import Checkpointer

from ..files import replacing, shortened
from .download import find_weights, is_download
from .formats import FORMATS, NOTHING, Format
from .unpickling import read_pickle

SAVED = "checkpoints.txt"  # beside last_checkpoint: the checkpoints of the same training, in order
_PART = re.compile(rf"(.+\.pth|{re.escape(SAVED)}|last_checkpoint)\.\d+\.part")  # see replacing()


class UnreadableWeights(ValueError):
    """A file that is no checkpoint, or an incomplete one."""


class StrictCheckpointer(Checkpointer):
    """fvcore's checkpointer that also

    1. loads weights of other models, from a file or URL, see :mod:`.formats`; the log names what they lack,
    2. reads pickles of model zoos without running what else they hold, and checks downloads,
    3. raises when weights do not fit, instead of logging it,
    4. raises when a training is to be resumed from a checkpoint without its optimizer or the like,
    5. puts each file under its name only when it is complete,
    6. resumes from the checkpoint before the last one where that is damaged, and says so; what a training that was
       killed had not finished writing is removed then,
    7. saves no weights that are NaN or infinite.

    Attributes:
        formats: those that a checkpoint is compared with, in this order.
    """

    formats: Sequence[Format] = FORMATS

    def __init__(self, model, save_dir: str = "", *, stem_weights: str = "middle", **checkpointables):
        """
        Args:
            model, save_dir, checkpointables: as for ``Checkpointer``.
            stem_weights: how a first convolution for three colours becomes grey, "middle" or "sum".
        """
        super().__init__(model, save_dir, **checkpointables)
        self._stem_weights = stem_weights
        self._saved: list[str] = []  # checkpoints of this training, the last one last

    def load(self, path: str, checkpointables: list[str] | None = None):
        """
        Raises:
            FileNotFoundError: if there is no such file.
            OSError: if it cannot be downloaded.
            ValueError: if the file is no checkpoint, its weights do not fit or ``checkpointables``, by default all, are
                not in it, or it is not the one that the hash in its name says; the message names it. A download that is
                no checkpoint is not kept.
        """
        self._wanted = self.checkpointables if checkpointables is None else checkpointables
        local = find_weights(path, self.path_manager) if path else path
        try:
            return super().load(path, checkpointables)
        except torch.OutOfMemoryError:
            raise
        except UnreadableWeights as error:
            if is_download(path) and "?" not in path:
                os.remove(local)  # or the next try would find it again
            raise UnreadableWeights(f"{path}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise ValueError(f"{path}: its states do not fit ({type(error).__name__}: {error})") from error

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """As fvcore's; where the last checkpoint is damaged or gone, the training goes on from the one before it.

        Raises:
            FileNotFoundError, ValueError: see :meth:`load`; and if none of the checkpoints can be read.
        """
        if resume and self.checkpointables:  # a training, not an evaluation beside one
            self.go_on()
        if not (resume and self.has_checkpoint()):
            return super().resume_or_load(path, resume=False)
        problems: list[Exception] = []
        for name in reversed(self._saved or self._read_saved(os.path.basename(self.get_checkpoint_file()))):
            candidate = os.path.join(self.save_dir, name)
            try:
                loaded = self.load(candidate)
            except (UnreadableWeights, FileNotFoundError) as error:
                problems.append(error)
                continue
            if problems:
                damaged = "\n  ".join(map(str, problems))
                self.logger.warning(f"Going on from {candidate}, as what came after it cannot be read:\n  {damaged}")
            return loaded
        raise problems[0]

    def go_on(self) -> None:
        """Take the checkpoints of the folder for those of this training, and remove what was not written to its end, or
        a training that is killed often would fill the disk. No other training writes into this folder."""
        if not self.save_dir:
            return
        if self.has_checkpoint():
            self._saved = self._read_saved(os.path.basename(self.get_checkpoint_file()))
        if self.save_to_disk:
            self._remove_parts()

    def _remove_parts(self) -> None:
        with suppress(FileNotFoundError), os.scandir(self.save_dir) as entries:
            for entry in entries:
                if _PART.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    os.remove(entry.path)

    def _read_saved(self, last: str) -> list[str]:
        """The checkpoints of the training that has written ``last``, up to that one; only it where nobody knows."""
        try:
            with open(os.path.join(self.save_dir, SAVED), encoding="utf-8") as f:
                names = f.read().split()
        except (OSError, UnicodeDecodeError):
            names = []
        return names[: names.index(last) + 1] if last in names else [last]

    def _load_file(self, filename: str):
        try:
            if filename.endswith(".pkl"):
                checkpoint = _model_zoo_checkpoint(read_pickle(filename))
            else:
                checkpoint = super()._load_file(filename)
        except MemoryError:
            raise
        except Exception as error:  # torch.load says nowhere what it raises for a damaged file; struct.error, for one
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # by which a file that is cut off says so
                raise
            message = f"expected a checkpoint with a state dict, got an unreadable file ({error})"
            raise UnreadableWeights(message) from error
        if not (isinstance(checkpoint, dict) and "model" in checkpoint):
            checkpoint = {"model": checkpoint}  # a bare state dict, as torchvision's
        if isinstance(checkpoint["model"], dict) and "state_dict" in checkpoint["model"]:  # files of mmdetection
            checkpoint = {"model": checkpoint["model"]["state_dict"]}
        model = checkpoint["model"]
        if not isinstance(model, dict):
            raise UnreadableWeights(f"expected a state dict, got a {type(model).__name__}")
        for name, value in model.items():
            if not isinstance(name, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
                raise UnreadableWeights(
                    f"expected a state dict of names and tensors, got {name!r} and a {type(value).__name__}"
                )
            if np.iscomplexobj(value) if isinstance(value, np.ndarray) else value.is_complex():
                raise UnreadableWeights(f"expected real numbers as {name!r}, got complex ones")
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
                f"{', '.join(missing)}. Is it of another engine, or of a training without SOLVER.EMA_DECAY? "
                "MODEL.WEIGHTS takes its trunk for a new training."
            )
        self._convert_ndarray_to_tensor(state_dict)
        for kind in self.formats:
            if kind.matches(self.model, checkpoint):
                checkpoint["model"] = kind.convert(self.model, checkpoint, self._stem_weights)
                checkpoint.pop("matching_heuristics", None)  # or Detectron2 would match names once more
                return self._check(super()._load_model(checkpoint), kind.may_lack, kind.may_leave_out)
        return self._check(super()._load_model(checkpoint), NOTHING, NOTHING)

    def _check(self, incompatible, may_lack: re.Pattern, may_leave_out: re.Pattern) -> None:
        shapes = {key: f"expected shape {want}, got {got}" for key, got, want in incompatible.incorrect_shapes}
        problems = {**dict.fromkeys(incompatible.missing_keys, "not in the checkpoint"), **shapes}
        accepted = [key for key in problems if may_lack.match(key)]
        accepted += [key for key in incompatible.unexpected_keys if may_leave_out.match(key)]
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

        Raises:
            FloatingPointError: if a weight is NaN or infinite; files that are there stay as they are.
            OSError: if the file cannot be written, with the same.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        weights = self.model.state_dict()
        for key, value in weights.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise FloatingPointError(f"{path} is not written: {key} is NaN or infinite.")
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        os.makedirs(self.save_dir, exist_ok=True)
        with replacing(path) as part:
            try:
                torch.save({"model": weights, **states, **kwargs}, part)
            except RuntimeError as error:  # by which torch says that a disk is full
                raise OSError(f"{path} cannot be written: {str(error).partition(chr(10))[0]}") from error
        if tag:
            # Who goes on from a damaged one looks for the one before it here: the folder may have those of others.
            self._saved = [*(one for one in self._saved if one != f"{name}.pth"), f"{name}.pth"]
            with replacing(os.path.join(self.save_dir, SAVED)) as part, open(part, "w", encoding="utf-8") as f:
                f.write("".join(f"{one}\n" for one in self._saved))
            self.tag_last_checkpoint(f"{name}.pth")

    def get_checkpoint_file(self) -> str:
        """Give the path of the checkpoint to resume from.

        Raises:
            ValueError: if ``last_checkpoint`` has no name of a file beside it.
        """
        tag = os.path.join(self.save_dir, "last_checkpoint")
        try:
            path = super().get_checkpoint_file()
        except UnicodeDecodeError as error:
            raise ValueError(f"{tag}: expected the name of a checkpoint, got no text ({error})") from error
        name = os.path.basename(path)
        if path and (not name or path != os.path.join(self.save_dir, name)):
            raise ValueError(f"{tag}: expected the name of a checkpoint beside it, got {shortened(path)}")
        return path

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with replacing(os.path.join(self.save_dir, "last_checkpoint")) as part, open(part, "w") as f:
            f.write(last_filename_basename)


def _model_zoo_checkpoint(content) -> dict:
    """Make a checkpoint of a pickle of Detectron2's model zoo, or of Caffe2's, whose names are compared with ours.

    Raises:
        ValueError: if it is no dict of arrays.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected a pickle of named arrays, as a model zoo has them, got a {type(content).__name__}")
    if "__author__" in content and "model" in content:
        return content
    blobs = content.get("blobs", content)
    model = {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
