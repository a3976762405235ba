"""What trainings need under torchrun: joining the other processes, and going on after a restart."""

import json
import logging
import os
import socket
import time
from datetime import timedelta
from uuid import uuid4

from fvcore.common.config import CfgNode
from torch import distributed

from ..files import replacing


def process_timeout(cfg: CfgNode) -> timedelta:
    """How long a process waits for the others."""
    return timedelta(seconds=cfg.SOLVER.PROCESS_TIMEOUT)


def join_processes(device_type: str, timeout: timedelta) -> None:
    """Join the other processes that torchrun has started: by NCCL on GPUs, and else by gloo.

    Raises:
        TimeoutError: if they do not come.
    """
    store, rank, world_size = next(distributed.rendezvous("env://", timeout=timeout))
    store = distributed.PrefixStore(_agree(store, rank, world_size, timeout.total_seconds()), store)
    backend = "nccl" if device_type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def _agree(store: distributed.Store, rank: int, world_size: int, timeout: float) -> str:
    """Find a name that the processes of this start have, and those of no other.

    torchrun's store lives through restarts, and has the addresses at which processes wait for each other: with torch
    2.14 whoever comes first after a restart finds those of processes that were killed. Nothing in the environment
    tells one start from another, as machines count restarts differently. So each process says hello by a name of its
    own, the first one proposes all that it has heard, and again when it hears another one, until each has agreed to a
    proposal with its own name.
    """
    mine, end = uuid4().hex, time.monotonic() + timeout
    store.set(f"hello_{rank}", mine)
    while time.monotonic() < end:
        if rank == 0:
            names = [store.get(f"hello_{other}").decode() for other in range(world_size)]
            store.set("proposal", ",".join(names))
            agreed = "_".join([mine, *names[1:]])
            if all(store.check([f"{agreed}_{name}"]) for name in names[1:]):
                store.set(agreed, "")
                return agreed
        else:
            names = store.get("proposal").decode().split(",")
            agreed = "_".join(names)
            if rank < len(names) and names[rank] == mine:
                store.set(f"{agreed}_{mine}", "")
                if store.check([agreed]):
                    return agreed
        time.sleep(0.05)
    raise TimeoutError(f"Not all of {world_size} processes have come within {timeout:g} s.")


def goes_on(resume: bool, output_dir: str) -> bool:
    """Whether to go on from the last checkpoint: if that is asked for, or a torchrun that has started this training
    before has started its processes again (``--max-restarts``). All processes call it, when they have joined.

    What belongs together is known by the torchruns themselves, which live through restarts and are noted in
    ``torchrun.json``: their own counts differ between machines, and ids are used again. A training that is not to go on
    puts ``last_checkpoint`` of the one before it aside, as it must not go on from there after a restart.
    """
    together = [_torchrun()]
    if distributed.is_initialized():
        together = together * distributed.get_world_size()
        distributed.all_gather_object(together, _torchrun())
    decision = [resume]
    if os.environ.get("RANK", "0") == "0":
        note, mark = (os.path.join(output_dir, name) for name in ("torchrun.json", "last_checkpoint"))
        decision = [resume or bool(set(together) & set(_noted(note)))]
        os.makedirs(output_dir, exist_ok=True)
        if not decision[0] and os.path.isfile(mark):
            os.replace(mark, f"{mark}.before")
            logging.getLogger(__name__).warning(
                f"This training begins anew, without --resume; {mark} of the one before is now {mark}.before."
            )
        with replacing(note) as part, open(part, "w") as f:
            json.dump(together, f)
    if distributed.is_initialized():
        distributed.broadcast_object_list(decision)
    return decision[0]


def _torchrun() -> str:
    """The process that has started this one: machine, number and the time of its start."""
    with open(f"/proc/{os.getppid()}/stat") as f:
        started = f.read().rpartition(")")[2].split()[19]  # the 22nd field, of which two are before the bracket
    return f"{socket.gethostname()} {os.getppid()} {started}"


def _noted(path: str) -> list[str]:
    try:
        with open(path) as f:
            content = json.load(f)
    except (OSError, ValueError):
        return []
    return [one for one in content if isinstance(one, str)] if isinstance(content, list) else []
