"""The work on the items of an archive: read a volume, find its lesions, write them as a3d-predict does."""

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout

from ...volumes.reading import read_volume
from ...volumes.volume import Volume
from ...volumes.writing import OUTPUTS
from ..quiet import hide_patient_names
from .manifest import Item
from .store import output_errors


class Prediction:
    """What a command line of ``a3d-archive predict`` asks for, to be done in other processes.

    Args:
        args: with the options of :mod:`..prediction_options` and ``opts``.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def read(self, item: Item) -> Volume:
        hide_patient_names()  # in the process that reads, which is another one
        return read_volume(item.path, item.series or None)

    def wants_gpu(self) -> bool:
        return (self.args.device or "cuda").startswith("cuda")

    def build(self, index: int) -> "VolumeProcessor":
        import torch

        hide_patient_names()
        if torch.cuda.is_available():
            torch.cuda.set_device(index % torch.cuda.device_count())
        with ExitStack() as stack:
            if index > 0:  # the first says for all which engine and device there is
                stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            return VolumeProcessor(self.args)


class VolumeProcessor:
    """Predicts volumes with the model of a command line; see :class:`.Processor`.

    Raises:
        Mistake: if config, weights or options cannot work.
    """

    def __init__(self, args: argparse.Namespace):
        from ..predict import build_dicom, build_predictor

        self._predictor, how = build_predictor(args)
        self._predictor.progress = False
        self._dicom = build_dicom(args, how)
        self._for_lesions_json = how
        self._outputs = [name for name in OUTPUTS if name not in args.without]
        self._keep_identifiers = args.keep_identifiers
        dicom = {name: getattr(args, name) for name in ("mint_uids", "pseudonymous", "dicom_score")}
        self.how = {
            **how,
            "outputs": self._outputs,
            "keep_identifiers": args.keep_identifiers,
            "dicom": dicom if args.dicom else None,
        }
        self.run = hashlib.sha256(json.dumps(self.how, sort_keys=True).encode()).hexdigest()

    def __call__(self, volume: Volume, folder: str) -> dict:
        from ...volumes.writing import write_results

        if self._dicom:
            self._dicom.check(volume)
        lesions = self._predictor.predict(volume)
        with output_errors(folder):
            write_results(
                folder,
                volume,
                lesions,
                box_margin=self._predictor.margin(volume),
                how=self._for_lesions_json,
                outputs=self._outputs,
                keep_identifiers=self._keep_identifiers,
                dicom=self._dicom,
            )
        return {"lesions": len(lesions)}

    def with_less_memory(self):
        return self._with_batch_size(self._predictor.batch_size // 2) if self._predictor.batch_size > 1 else None

    @contextmanager
    def _with_batch_size(self, size: int) -> Iterator[None]:
        before, self._predictor.batch_size = self._predictor.batch_size, size
        try:
            yield
        finally:
            self._predictor.batch_size = before
