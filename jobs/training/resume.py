"""Checkpoints of a run in its store: written in the background, verified when read.

A checkpoint is the folder step-<8 digits>. Its checkpoint.sha256 is written last and removed first: without it there is
none.
"""

import hashlib
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.documents import SMALL, read_sums
from pipeline.errors import UserError
from pipeline.patience import Pauses
from pipeline.shards.format import file_sha256
from pipeline.storage import Storage, UnavailableError

SUMS = "checkpoint.sha256"  # not SHA256SUMS, which makes a folder a published version
PATIENCE = 300  # seconds for which a store that does not answer is tried again, while training goes on
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two tries, doubled from the first to the longest
NAME = re.compile(r"step-(\d{8})/")


class Checkpoints:
    """The checkpoints of one run, as the one process that writes them uses them."""

    def __init__(self, place: Storage, *, keep_last: int, keep_best: int) -> None:
        """place: the run's folder. keep_last, keep_best: how many of the newest, and of the best-scored, are kept."""
        self.place, self.keep_last, self.keep_best = place, keep_last, keep_best
        self._writing: threading.Thread | None = None
        self._error: BaseException | None = None

    @staticmethod
    def name(step: int) -> str:
        """The folder of the checkpoint of a step."""
        return f"step-{step:08d}"

    def save(self, step: int, files: dict[str, bytes], scores: dict[int, float], beside: dict[str, bytes]) -> None:
        """Write a checkpoint and then remove those that are no longer kept, both in the background.

        scores: by step; this step need not have one yet; the higher, the better. beside: files of the
        run that are replaced with it. Waits for the checkpoint before this one, and raises what `wait` does.
        """
        self.wait()

        def write() -> None:
            try:
                _patiently(lambda: self._write(step, files, beside))
                _patiently(lambda: self._prune(step, scores))
            except BaseException as error:
                self._error = error

        self._writing = threading.Thread(target=write, name="checkpoint")
        self._writing.start()

    def finish(self, step: int, scores: dict[int, float], beside: dict[str, bytes]) -> None:
        """Write files of the run and remove what is no longer kept, now that the last checkpoint has its score too.

        Returns when that is done. Raises what `wait` does.
        """
        self.wait()
        for name, data in beside.items():
            _patiently(lambda name=name, data=data: self.place.write(name, data))  # type: ignore[misc]
        _patiently(lambda: self._prune(step, scores))

    def wait(self) -> None:
        """Return when the last checkpoint is whole in the store. Raises what kept it from that: UserError, OSError."""
        if self._writing is not None:
            self._writing.join()
        self.check()

    def check(self) -> None:
        """Raise what went wrong in the background so far."""
        if self._error is not None:
            raise self._error

    def _write(self, step: int, files: dict[str, bytes], beside: dict[str, bytes]) -> None:
        folder = self.name(step)
        self.place.remove(f"{folder}/{SUMS}")  # of a damaged one, which is written anew
        for name, data in files.items():
            self.place.write(f"{folder}/{name}", data)
        sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
        self.place.write(f"{folder}/{SUMS}", sums.encode())
        for name, data in beside.items():
            self.place.write(name, data)

    def _prune(self, newest: int, scores: dict[int, float]) -> None:
        names = self.place.names("step-")
        whole = [step for step in self._steps(names) if step <= newest]
        scored = sorted((step for step in whole if step in scores), key=lambda step: (scores[step], step))
        kept = {*whole[-self.keep_last :], *(scored[-self.keep_best :] if self.keep_best else ())}
        for name in sorted(names, key=lambda name: not name.endswith(f"/{SUMS}")):
            found = NAME.match(name)
            if found and int(found[1]) <= newest and int(found[1]) not in kept:
                self.place.remove(name)

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, ascending; none of them is read."""
        return self._steps(self.place.names("step-"))

    @staticmethod
    def _steps(names: list[str]) -> list[int]:
        return sorted(int(found[1]) for name in names if (found := NAME.match(name)) and name.endswith(f"/{SUMS}"))

    def fetch(self, name: str, folder: Path) -> None:
        """Copy a checkpoint into a local folder. Raises UserError if a file of it is missing or damaged."""
        where = f"{self.place.uri}/{name}"
        try:
            sums = read_sums(self.place.read(f"{name}/{SUMS}", SMALL), f"{where}/{SUMS}", "train again")
            if {f"{name}/{file}" for file in (*sums, SUMS)} != set(self.place.names(f"{name}/")):
                raise UserError(f"{where}: {SUMS} lists other files than there are")
            for file, digest in sums.items():
                self.place.download(f"{name}/{file}", folder / file)
                if file_sha256(folder / file) != digest:
                    raise UserError(f"{where}/{file}: damaged (its sha256 is not {digest[:16]}...)")
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: missing") from None

    def newest(self, folder: Path, warn: Callable[[str], None]) -> str | None:
        """Copy the newest whole checkpoint into a local folder, and return its name; None where there is none.

        A damaged one is passed over for the one before it, with a line to `warn`. Raises UserError if all are damaged.
        """
        damage = ""
        for step in reversed(self.steps()):
            try:
                self.fetch(self.name(step), folder)
            except UnavailableError:
                raise
            except UserError as error:
                damage = str(error)
                warn(f"{damage}; going back to the checkpoint before it")
            else:
                return self.name(step)
        if damage:
            raise UserError(
                f"{damage}, and so is every checkpoint before it; bring one back, or remove {self.place.uri} "
                "to train from the beginning"
            )
        return None


def _patiently(attempt: Callable[[], Any]) -> None:
    """Try until it succeeds or the patience with a store that does not answer is at its end."""
    deadline = time.monotonic() + PATIENCE
    for pause in Pauses(FIRST_PAUSE, LONGEST_PAUSE):
        try:
            attempt()
            return
        except UnavailableError:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
