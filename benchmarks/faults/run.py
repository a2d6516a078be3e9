"""A run: the command that trains, how far it is, the moment of its fault, and what it leaves."""

import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from benchmarks.faults.processes import BIN, POLL, Command, descendants, end, family, title
from benchmarks.faults.results import Attempt, Result
from jobs.variant import words

if TYPE_CHECKING:
    from benchmarks.faults.series import Series

BUCKET = "faults"


class MissedError(Exception):
    """The run was over before its fault."""


class Moment(NamedTuple):
    """Seconds after the first sight of a step; for step 0, after the start of the fit."""

    step: int
    seconds: float


def moment(seed: int, fault: str, time: int, attempt: int, seen: list[tuple[float, int]]) -> Moment:
    """When a fault strikes: uniform over the time of the undisturbed run, the same for the same arguments.

    seen: seconds after the start of its fit, and the steps that were seen then, from (0, 0) to the last.
    """
    at = random.Random(f"{seed} {fault} {time} {attempt}").uniform(0, seen[-1][0])
    since, step = max(each for each in seen if each[0] <= at)
    return Moment(step, at - since)


def started_ranks(log: str) -> list[dict[int, int]]:
    """For each group of workers in the log of Ray Train's controller: rank -> process id."""
    groups = []
    for line in log.splitlines():
        with suppress(json.JSONDecodeError):  # a line that is being written
            message = json.loads(line).get("message", "")
            if message.startswith("Started training worker group"):
                groups.append({int(r): int(pid) for pid, r in re.findall(r"pid=(\d+)\) world_rank=(\d+)", message)})
    return groups


class Steps:
    """How far a run is, and how many steps it did again: what is seen of it falls back at a resume."""

    def __init__(self) -> None:
        self.last = self.lost = 0

    def see(self, step: int) -> None:
        """The run stands at this step."""
        self.lost += max(self.last - step, 0)
        self.last = step


class Training:
    """One run of the recipe in a store of its own, by one command or two."""

    def __init__(self, series: "Series", name: str, store: str, limit: float = 600) -> None:
        """limit: seconds after which a command hangs."""
        self.series, self.cluster, self.store = series, series.cluster, store
        self.folder = series.work / "runs" / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.place = {"folder": self.folder / "store", "full": series.small / name}.get(store)
        if self.place:
            shutil.rmtree(self.place, ignore_errors=True)
        self.uri = str(self.place) if self.place else f"s3://{BUCKET}/{name}"
        self.limit = limit
        self.random = random.Random(f"{series.seed} {name}")
        self.steps = Steps()
        self.attempts: list[Attempt] = []
        self.controllers = self.cluster.controllers()
        self.groups = 0
        self.fit: float | None = None  # when it began
        self.seen: list[tuple[float, int]] = []  # seconds since then, and a step that was reached
        self.struck: int | None = None  # the step that was seen last

    def start(self) -> None:
        """Give the command."""
        self.log = self.folder / f"{len(self.attempts) + 1}.log"
        options = ["--data", str(self.series.work / "data"), "--store", self.uri, "--runs", str(self.folder / "runs")]
        options += words([*self.series.overrides])
        self.began = time.monotonic()
        self.process = Command(
            [*self.cluster.hosts.each[0].prefix, sys.executable, "-m", "memoir", "train", "tiny.yaml", *options],
            self.log,
            cwd=self.series.work,
            env=self.cluster.environment,
            start_new_session=True,
        )
        self.killed = False

    def look(self) -> None:
        """Take note of how far the run is."""
        groups = started_ranks("".join(p.read_text() for p in self._new_controllers()))
        if self.fit is None and self._new_controllers():
            self.fit = time.monotonic()
            self.seen.append((0.0, 0))
        if self.place:
            for path in self.place.glob("runs/*/metrics.jsonl"):
                self.steps.see(logged(path))
        else:
            if len(groups) > max(self.groups, 1):
                self.steps.see(max([0, *self.checkpoints()]))
            shown = re.findall(r"^tiny-\w+ (\d+)/\d+ ", self.log.read_text(), re.MULTILINE)
            self.steps.see(max([self.steps.last, *map(int, shown)]))
        self.groups = len(groups)
        if self.fit is not None and self.steps.last > self.seen[-1][1]:
            self.seen.append((round(time.monotonic() - self.fit, 2), self.steps.last))

    def _new_controllers(self) -> list[Path]:
        return sorted(self.cluster.controllers() - self.controllers, key=lambda path: path.stat().st_ctime)

    def ranks(self) -> dict[int, psutil.Process]:
        """The ranks that train now."""
        groups = started_ranks("".join(p.read_text() for p in self._new_controllers()))
        living = {process.pid: process for process in descendants()}
        return {rank: living[pid] for rank, pid in (groups[-1] if groups else {}).items() if pid in living}

    def checkpoints(self) -> dict[int, str]:
        """The checkpoints in the store: step -> name."""
        if self.place:
            names = [str(path) for path in self.place.glob("runs/*/step-*/model.safetensors")]
        else:
            names = self.series.objects(self.uri)
        found = [re.search(r"step-(\d+)", name) for name in names]
        return {int(match[1]): match[0] for match in found if match}

    def until(self, found: Callable[[], Any]) -> Generator[float, None, Any]:
        """Wait for something to become true, and return it. Raises MissedError if the run ends before."""
        while not (value := found()):
            if self.process.poll() is not None:
                raise MissedError
            yield POLL
        self.struck = self.steps.last
        return value

    def kill(self) -> None:
        """SIGKILL to the driver. Raises MissedError if it has ended."""
        if self.process.poll() is not None:
            raise MissedError
        self.process.kill()
        self.killed = True

    def reached(self, at: Moment) -> bool:
        """Whether it is this moment, or later."""
        since = next((seconds for seconds, step in self.seen if step >= at.step), None)
        return self.fit is not None and since is not None and time.monotonic() >= self.fit + since + at.seconds

    def follow(self, at: Moment | None = None, fault: Callable[["Training"], Iterator[float]] | None = None) -> None:
        """Follow the command, with the fault that strikes at that moment, to its end. Raises MissedError."""
        acts: Iterator[float] | None = None
        wake, deadline = 0.0, self.began + self.limit
        try:
            while True:
                self.look()
                ended = self.process.poll() is not None
                now = time.monotonic()
                if fault and at and acts is None and not ended and self.reached(at):
                    self.struck = self.steps.last
                    acts = fault(self)
                    wake = now
                if acts and now >= wake:
                    try:
                        wake = now + next(acts)
                    except StopIteration:
                        fault = acts = None
                if ended and acts is None:
                    break
                if now > deadline and not ended:
                    stacks(self.folder / "stacks.txt")
                    end(family(psutil.Process(self.process.pid)))
                    self.attempts.append(Attempt(None, self.log.read_text(), self.killed, now - self.began))
                    return
                time.sleep(POLL)
                if not ended:
                    self.ended = time.monotonic()
        finally:
            if acts is not None:
                acts.close()  # type: ignore[attr-defined]  # mends what it broke
        self.attempts.append(
            Attempt(self.process.returncode, self.log.read_text(), self.killed, self.ended - self.began)
        )
        if fault and self.process.returncode == 0:
            raise MissedError

    def result(self) -> Result | None:
        """What the last command has left, if it finished."""
        if self.attempts[-1].code != 0:
            return None
        runs = self.folder / "runs/tiny"
        pointer = json.loads((runs / "checkpoint.json").read_text())
        return Result(pointer["run"], pointer["sha256"], hashlib.sha256((runs / "curve.tsv").read_bytes()).hexdigest())


def logged(path: Path) -> int:
    """The last step in a metrics.jsonl; 0 where there is none."""
    with suppress(FileNotFoundError):
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return int(json.loads(whole[-1])["step"]) if whole else 0
    return 0


def stacks(path: Path) -> None:
    """What the Python processes of a hanging run do, by py-spy, which comes with Ray."""
    with path.open("w") as file:
        for process in descendants():
            if title(process).startswith(("ray::RayTrain", "ray::Train")) or "memoir train" in title(process):
                file.write(f"{process.pid} {title(process)}\n")
                file.flush()
                dump = subprocess.Popen([BIN / "py-spy", "dump", "--pid", str(process.pid)], stdout=file, stderr=file)
                Command.pids.add(dump.pid)
                dump.wait()
