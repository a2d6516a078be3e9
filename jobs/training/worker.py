"""One rank of a run, in a process of Ray Train's: the loop, and what happens around it."""

import os
import tempfile
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from torch.distributed import DistError

from jobs.arithmetic import COST, native_bf16
from jobs.recipe import unpacked
from jobs.training.board import Board
from jobs.training.loop import Run, json_lines
from jobs.training.meter import Meter
from jobs.training.optimiser import Average
from jobs.training.ray_train import preemption
from jobs.training.resume import Checkpoints
from jobs.training.snapshots import Snapshots, first_of_node
from jobs.training.start import load_start
from jobs.training.trackers import Trackers, check_installed
from jobs.training.watchdog import Watchdog
from pipeline.errors import MENDABLE, UserError
from pipeline.files import write_bytes
from pipeline.storage import Folder, UnavailableError, storage


def train_rank(config: dict[str, Any]) -> dict[str, str]:
    """Train one DDP rank; returns the name of the final checkpoint, that it pauses, or the user's mistake that ended the run.

    A rank raises any error that it meets: only then does Ray Train end the other ranks, which wait for it. Then all start
    again from the last checkpoint; if it was a mistake of the user's, each of them returns it.
    """
    feed = config["feed"]
    if fatal := ray.get(feed.fatal.remote(), timeout=60):
        return fatal
    rank: Rank | None = None
    try:
        rank = Rank(**config)
        checkpoint = rank.train()
        return {"paused": checkpoint} if rank.run.paused else {"checkpoint": checkpoint}
    except UnavailableError:  # may be over when all have started again
        raise
    except UserError as error:
        ray.get(feed.fail.remote(str(error)), timeout=60)
        raise
    except OSError as error:
        if error.errno in MENDABLE:
            where = error.filename or config["place"]
            ray.get(feed.fail.remote(f"{where}: {error.strerror}; mend it, and the same command continues"), timeout=60)
        raise
    except Exception as error:
        if rank and not _of_another_rank(error):
            met = (rank.run.rank, rank.run.state.step, f"{type(error).__name__}: {error}", traceback.format_exc())
            ray.get(feed.defects.remote(*met), timeout=60)
        raise


def _of_another_rank(error: Exception) -> bool:
    """Whether a collective failed, as it does when another rank is gone."""
    return isinstance(error, DistError) or "gloo" in str(error) or "nccl" in str(error).lower()


def _device(gpu: bool) -> torch.device:
    """This rank's, which is torch's from now on."""
    if not gpu:
        return torch.device("cpu")
    from ray.train.torch import get_device  # takes half a second

    device: torch.device = get_device()
    torch.cuda.set_device(device)
    return device


class Rank:
    """One DDP rank. `train` calls the methods below it, in their order.

    Checkpoints are written by rank 0, which also tells the feed, TensorBoard and metrics.jsonl what the loop has logged.
    """

    def __init__(self, sent: dict[str, Any], data: dict[str, str], place: str, feed: Any, here: str) -> None:
        """sent: the packed recipe. data: datasets by task. place: the run's folder in the store. feed: the actor that shows what is told.

        here: the driver's folder.
        """
        with suppress(FileNotFoundError):  # on another machine
            os.chdir(here)  # a recipe's relative paths are the project's
        recipe = unpacked(sent)
        torch.set_num_threads(recipe.training.cpus_per_worker)
        training = recipe.training
        check_installed(training.track)
        self.training, self.place, self.feed = training, place, feed
        self.store = storage(place)
        self.checkpoints = Checkpoints(self.store, keep_last=training.keep_last, keep_best=training.keep_best)
        self.run = Run(recipe, data, _device(training.gpu))
        self.first = self.run.rank == 0
        if self.first:
            self.run.tell = self.note
        self.board: Board | None = None  # rank 0's
        self.trackers: Trackers | None = None  # rank 0's
        self.live: Path | None = None  # the file of rank 0 that shows each record at once; a bucket has none
        self.warned = False  # that a node will be taken
        self.snapshots: Snapshots | None = None
        if training.snapshot_every is not None:
            run = place.rstrip("/").rpartition("/")[2]
            self.snapshots = Snapshots(run, self.run.rank, first_of_node=first_of_node(), warn=self.note)

    def train(self) -> str:
        """Train to the end; returns the name of the final checkpoint."""
        came_from = self.resume()
        if self.first:
            self.begin(came_from)
        with Watchdog(self.training.hang_s, self.hung) as watchdog:
            self.run.train(self.save, self.record, watchdog.beat, self.snap)
            if self.first:
                self.finish()
            if self.snapshots:
                self.snapshots.remove()
        if self.run.paused:
            return self.checkpoints.name(self.run.state.step)
        return self.checkpoints.name(self.run.final)

    def resume(self) -> str | None:
        """Load the newest whole checkpoint, the same on all ranks, or else what the run starts from; returns which, if any.

        A snapshot in the memory of a node is as good, and may be of a later step.
        """
        with tempfile.TemporaryDirectory(prefix="memoir-checkpoint-") as copy:
            if self.snapshots and (step := self._from_memory(self.snapshots, Path(copy))):
                return f"step {step} in memory"
            newest = [self.checkpoints.newest(Path(copy), self.note) if self.first else None]
            torch.distributed.broadcast_object_list(newest)  # rank 0's
            if name := newest[0]:
                if not self.first:
                    self.checkpoints.fetch(name, Path(copy))
                self.run.load(Path(copy))
            elif sha256 := load_start(self.run.model, self.store, Path(copy)):
                if self.run.average is not None:  # it begins with these weights, and not with the untrained ones
                    self.run.average = Average(self.run.model, self.run.average.ema)
                return f"other weights ({sha256[:16]})"
        return name

    def _from_memory(self, snapshots: Snapshots, folder: Path) -> int | None:
        """Load the newest snapshot, if the store has no newer checkpoint; returns its step."""
        stored = [max(self.checkpoints.steps(), default=0) if self.first else 0]
        torch.distributed.broadcast_object_list(stored)
        if (found := snapshots.newest(folder, after=stored[0])) is None:
            return None
        step, meter = found
        self.run.load(folder)
        if meter is not None:
            self.run.meter.restore(meter, self.run.device)
        return step

    def snap(self, run: Run, meter: Meter) -> None:
        """Keep the state in memory, if this step is one of those."""
        every = self.training.snapshot_every
        if self.snapshots and every is not None and run.state.step % every == 0:
            told = {**meter.state(), "world_size": run.world_size, "every": every}
            self.snapshots.save(run.state.step, run.save, told)

    def begin(self, came_from: str | None) -> None:
        """Tell what begins and how it computes, and open the files for the records, without those that come again."""
        run = self.run
        instructions = " by the instructions that all CPUs with AVX2 have" if self.training.portable else ""
        started = f"{run.world_size} workers, from {came_from or 'the beginning'}"
        computed = f"convolutions in {run.precision}{instructions}"
        costs = [COST] if run.precision == "bf16" and not native_bf16(run.device) else []
        for line in (started, computed, *costs, *run.notes):
            self.note(line)
        self.board = Board(self.store, run.state.step)
        if self.training.track:
            name = self.place.rstrip("/").rpartition("/")[2]
            self.trackers = Trackers(self.training.track, name, run.recipe.model_dump(mode="json"), self.note)
        if isinstance(self.store, Folder):
            self.live = self.store.root / "metrics.jsonl"
            write_bytes(self.live, json_lines(run.records).encode())

    def record(self, record: dict[str, Any]) -> None:
        """Take the loop's newest record: end if a checkpoint could not be written, show it, heed a notice to leave."""
        self.checkpoints.check()
        if self.first:
            self.show(record)
            self.heed_preemption()

    def show(self, record: dict[str, Any]) -> None:
        """Show a record wherever somebody may look."""
        if self.board:
            self.board.add(record, self.run.pictures)
        if self.trackers:
            self.trackers.add(record)
        told = {"total": self.run.total, **record}
        if "images_per_s" in record:
            told["left_s"] = (self.run.total - record["step"]) * self.run.loader.batch / record["images_per_s"]
        self.feed.put.remote(told)
        if self.live:
            with self.live.open("a") as file:
                file.write(json_lines([record]))

    def heed_preemption(self) -> None:
        """Save at once, and only once, when a node of the run will be taken."""
        preempted = preemption()
        if preempted and not self.warned:
            self.warned = True
            self.save(self.run)
            self.note(
                f"the nodes of ranks {preempted.preempted_ranks} will be taken: saving step {self.run.state.step}"
            )

    def save(self, run: Run) -> None:
        """Begin to write a checkpoint, whenever the loop says that one is due."""
        if self.first:
            self.checkpoints.save(run.state.step, run.save(), run.scores, self.beside(with_records=not self.live))

    def finish(self) -> None:
        """Write what came after the last checkpoint: the validation of the last step."""
        self.checkpoints.finish(self.run.state.step, self.run.scores, self.beside(with_records=True))
        if self.trackers:
            self.trackers.finish()

    def beside(self, *, with_records: bool) -> dict[str, bytes]:
        """The files of the run, contents by name, that are written with a checkpoint."""
        records = {"metrics.jsonl": json_lines(self.run.records).encode()} if with_records else {}
        return {**records, **(self.board.files() if self.board else {})}

    def note(self, line: str) -> None:
        """Have a line told once."""
        self.feed.note.remote(line)

    def hung(self, stacks: str) -> None:
        """End this process, which stands still, and leave its stacks in the run's folder. The watchdog's thread is here."""
        file = f"hung/step-{self.run.state.step + 1:08d}-rank-{self.run.rank}.txt"
        writer = threading.Thread(target=self.store.write, args=(file, stacks.encode()), daemon=True)
        writer.start()
        writer.join(30)  # the store may be what it waits for
        line = f"rank {self.run.rank} stood still for {self.training.hang_s:g} s; its stacks: {self.place}/{file}"
        with suppress(Exception):
            ray.get(self.feed.note.remote(line), timeout=10)
        os._exit(1)
