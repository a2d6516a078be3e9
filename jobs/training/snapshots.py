"""The state of a run in the memory of its nodes, for a start that follows soon after: when a rank was lost, the others are too.

All ranks have the same weights, so that each node keeps its own copy, and nothing is sent while training goes on. What is only
in memory is as whole as a checkpoint in the store: the same files, with their sums.
"""

import json
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from jobs.documents import SMALL
from jobs.training.resume import Checkpoints
from pipeline.config import parse_json
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.storage import Folder

MEMORY = Path("/dev/shm")
KEPT = 2  # the newest may be of a step that not all ranks have ended
STALE = 86400  # seconds without a write, after which a run is not waited for any more


class Snapshots:
    """The snapshots of one run on this node, as one of its ranks uses them."""

    def __init__(self, run: str, rank: int, *, first_of_node: bool, warn: Callable[[str], None]) -> None:
        """run: its name in the store. first_of_node: the rank that writes the state; each rank writes its meter.

        warn: is told once if there is no room, or no folder of one's own; then there are no more snapshots.
        """
        self.rank, self.first_of_node, self.warn = rank, first_of_node, warn
        root = _root()
        self.folder = root / run
        self.off = False
        try:
            _own(root)
            self.folder.mkdir(exist_ok=True)
            if first_of_node:
                _remove_stale(root, self.folder)
        except OSError as error:
            self._end(error)
        self._states = Checkpoints(Folder(str(self.folder), self.folder), keep_last=KEPT, keep_best=0)

    def _end(self, error: OSError) -> None:
        if not self.off:
            self.warn(
                f"no snapshots: {error.filename or self.folder}: {error.strerror}; a lost rank costs what the store has not"
            )
        self.off = True

    def save(self, step: int, state: Callable[[], dict[str, bytes]], meter: dict[str, Any]) -> None:
        """Write the state after a step, in the background, and this rank's part of what is only recorded later."""
        if self.off:
            return
        try:
            write_bytes(self._meter(step), json.dumps(meter).encode())
            self._meter(step - KEPT * meter["every"]).unlink(missing_ok=True)
            if self.first_of_node:
                self._states.save(step, state(), {}, {})
        except OSError as error:
            self._end(error)

    def _meter(self, step: int) -> Path:
        return self.folder / f"meter-{self.rank:05d}-{step:08d}.json"

    def newest(self, folder: Path, after: int) -> tuple[int, dict[str, Any] | None] | None:
        """Have the newest snapshot that any node has in a local folder; all ranks call it, and have the same.

        after: only if it is of a later step. Returns the step, and what this rank's meter had then, None unless all ranks know
        theirs; or None where there is no such snapshot.
        """
        steps = [] if self.off else self._states.steps()
        held: list[Any] = [None] * dist.get_world_size()
        meters = {} if self.off else self._meters()
        dist.all_gather_object(held, (steps, meters))
        for step in sorted({step for there, _ in held for step in there if step > after}, reverse=True):
            giver = next(rank for rank, (there, _) in enumerate(held) if step in there)
            files: list[Any] = [self._fetched(step, folder) if self.rank == giver else None]
            dist.broadcast_object_list(files, giver)
            if files[0] is None:
                continue  # damaged
            for name, data in files[0].items():
                write_bytes(folder / name, data)
            known = {rank: meter for _, there in held for (rank, at), meter in there.items() if at == step}
            whole = set(known) == set(range(len(held))) and {m["world_size"] for m in known.values()} == {len(held)}
            return step, known[self.rank] if whole else None
        return None

    def _meters(self) -> dict[tuple[int, int], dict[str, Any]]:
        """What is on this node, by rank and step."""
        found = {}
        for path in self.folder.glob("meter-*.json"):
            _, rank, step = path.stem.split("-")
            with suppress(UserError, OSError):
                if path.stat().st_size < SMALL:
                    found[int(rank), int(step)] = parse_json(path.read_bytes(), str(path))
        return found

    def _fetched(self, step: int, folder: Path) -> dict[str, bytes] | None:
        try:
            self._states.fetch(Checkpoints.name(step), folder)
        except UserError:
            return None
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    def remove(self) -> None:
        """The run has ended, and is in the store."""
        if self.first_of_node and not self.off:
            with suppress(OSError):
                self._states.wait()
            shutil.rmtree(self.folder, ignore_errors=True)


def first_of_node() -> bool:
    """Whether no rank before this one has the same memory; all ranks call it.

    Ray's local rank goes by addresses, and nodes with memories of their own may have one address: containers of one machine.
    """
    rank, token = dist.get_rank(), [uuid.uuid4().hex]
    dist.broadcast_object_list(token)

    def mark(of: int) -> Path:
        root = _root()
        return root.with_name(f"{root.name}-{token[0]}-{of}")

    with suppress(OSError):  # then there are no snapshots
        mark(rank).touch()
    dist.barrier()
    first = not any(mark(before).exists() for before in range(rank))
    dist.barrier()
    mark(rank).unlink(missing_ok=True)
    return first


def _root() -> Path:
    return (MEMORY if os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())) / f"memoir-{os.getuid()}"


def _own(root: Path) -> None:
    """Make a folder that nobody else writes into. Raises OSError if somebody else has it: what it holds would be loaded."""
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(0, "somebody else may write into it", str(root))


def _remove_stale(root: Path, own: Path) -> None:
    """Free the memory that runs have left which nobody has continued."""
    for folder in root.iterdir():
        newest = max((path.stat().st_mtime for path in (folder, *folder.iterdir())), default=0)
        if folder != own and newest < time.time() - STALE:
            shutil.rmtree(folder, ignore_errors=True)
