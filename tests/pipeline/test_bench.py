"""`memoir bench load`: it counts what the loader delivers, and times it."""

import itertools
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photograph

from pipeline.errors import UserError
from pipeline.loading import bench
from pipeline.loading.bench import bench_load, copies, deliver, memcpy, shard_bytes, stall
from pipeline.loading.loader import Loader
from pipeline.loading.pool import Batch, Loan, Pool
from pipeline.sampling.patches import Grid, RandomCrops

PATCH, BATCH = 24, 16
FILES = {f"train/{i}.png": photograph(i, 60, 100) for i in range(5)}
SAMPLES = 3 * 5 * 5 * 2  # rows and columns of the grid, photographs, levels; the last batch of an epoch holds 6
KEYS = {
    *("batches", "samples", "bytes", "seconds", "cpu_seconds", "samples_per_second", "bytes_per_second"),
    *("memcpy_bytes_per_second", "share_of_memcpy", "step_ms", "stall", "notes"),
}


@pytest.fixture(scope="session")
def data(builder) -> Path:
    return builder("bench", FILES | {"val/1.png": photograph(9, 60, 100)})


class Clock:
    """A clock that stands still but for what is said to take time."""

    def __init__(self, tick: float = 0) -> None:
        self.now, self.tick = 0.0, tick

    def perf_counter(self) -> float:
        self.now += self.tick
        return self.now

    def process_time(self) -> float:
        return self.now / 2

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    return clock


def batches_of(clock: Clock, seconds: float, true: int) -> Iterator:
    """Batches of two samples that take so long and hold so many true ones: 10 bytes of planes a sample."""
    while True:
        clock.now += seconds
        planes = {"gt": torch.zeros(2, 6, dtype=torch.uint8), "lq": torch.zeros(2, 4, dtype=torch.uint8)}
        tensors = planes | {"level": torch.zeros(2, dtype=torch.int64), "weight": (torch.arange(2) < true).float()}
        yield None, Batch(tensors, Loan(Pool(pinned=False), 1))


def true_samples(first: int, batches: int, each: int = SAMPLES) -> int:
    """Of so many consecutive batches, the first of this number, without padding."""
    epoch = -(-each // BATCH)
    return sum(min(BATCH, each - i % epoch * BATCH) for i in range(first, first + batches))


# what is counted


def test_a_run_counts_the_samples_that_the_loader_delivered_without_padding(data):
    done = bench_load(data, sampling=Grid(PATCH, 16, dihedral=False), batch=BATCH, seconds=0.1, step_ms=0)
    assert done["batches"] > SAMPLES / BATCH, "no epoch ended: nothing was padded"
    assert done["samples"] == true_samples(1, done["batches"])  # the first batch is not counted
    assert done["samples_per_second"] * done["seconds"] == pytest.approx(done["samples"])
    assert done["bytes"] == done["samples"] * 2 * PATCH**2  # gt and lq, grey
    assert done["bytes_per_second"] * done["seconds"] == pytest.approx(done["bytes"])
    assert done["share_of_memcpy"] * done["memcpy_bytes_per_second"] == pytest.approx(done["bytes_per_second"])
    assert done["seconds"] >= 0.1


def test_the_sampling_decides_what_is_loaded(data):
    done = bench_load(data, sampling=RandomCrops(40, crops=3), batch=BATCH, seconds=0.02, step_ms=0)
    assert done["samples"] == true_samples(1, done["batches"], 3 * 5 * 2)
    assert done["bytes"] == done["samples"] * 2 * 40**2


def test_the_first_batch_is_not_counted(data):
    done = bench_load(data, sampling=Grid(PATCH, 16, dihedral=False), batch=100, seconds=0, step_ms=0)
    assert (done["batches"], done["samples"]) == (1, SAMPLES - 100)


def test_a_run_ends_after_its_time(clock):
    done = deliver(batches_of(clock, 0.25, true=1), seconds=2)
    assert done == {"batches": 8, "samples": 8, "bytes": 80, "seconds": 2.0, "cpu_seconds": 1.0}


def test_a_run_takes_one_batch_at_least(clock):
    assert deliver(batches_of(clock, 8, true=2), seconds=0.5)["batches"] == 1


# the stall


@pytest.mark.parametrize(("step_ms", "share"), [(0, 1), (125, 0.5), (375, 0.25), (1875, 0.0625)])
def test_the_stall_is_the_share_of_the_time_that_batches_take(clock, step_ms, share):
    assert stall(batches_of(clock, 0.125, true=2), seconds=8, step_ms=step_ms) == pytest.approx(share)


def test_threads_cut_ahead_while_a_device_works(data):
    loader = Loader(data, batch=BATCH, sampling=Grid(PATCH, 16))
    shares = {}
    for step_ms in (0, 25):
        with closing(loader.batches()) as batches:
            next(batches)
            shares[step_ms] = stall(batches, 0.2, step_ms)
    assert shares[0] > 0.9
    assert shares[25] < 0.5


# the limit


def test_the_limit_copies_the_source_in_turn_at_the_size_of_a_batch(clock):
    clock.tick = 0.25
    taken = []

    class Source(np.ndarray):
        def __getitem__(self, place):
            taken.append((place.start or 0, place.stop))
            return super().__getitem__(place)

    rates = memcpy(np.zeros(100, np.uint8).view(Source), 30, seconds=4)
    assert set(rates) == {30 / 0.25}
    assert taken[:5] == [(0, 30), (30, 60), (60, 90), (0, 30), (30, 60)]


def test_copies_go_into_the_buffers_in_turn():
    source = np.arange(10, dtype=np.uint8)
    first, second, third, fourth = itertools.islice(copies(source, 4, 3), 4)
    assert [each.tolist() for each in (second, third)] == [[4, 5, 6, 7], [0, 1, 2, 3]]
    assert fourth is first
    assert fourth.tolist() == [4, 5, 6, 7]


def test_the_limit_of_a_batch_larger_than_the_shards():
    assert min(memcpy(np.zeros(10, np.uint8), 1000, seconds=0)) > 0


def test_the_source_is_the_beginning_of_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "SOURCE", 7)
    paths = [tmp_path / name for name in "abc"]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 5)
    assert shard_bytes(paths).tolist() == [0] * 5 + [1] * 2
    assert shard_bytes(paths[2:]).tolist() == [2] * 5


# the command


def test_the_command_prints_what_was_measured(data, cli):
    code, out, _ = cli("bench", "load", str(data), "--patch", "24", "--stride", "16", "--seconds", "0.02")
    assert code == 0
    assert all(words in out for words in ("samples/s", "MB/s", "of memcpy", "a device that takes 5 ms"))


def test_images_smaller_than_a_patch_are_named_and_an_error_if_that_is_asked_for(builder, cli):
    files = FILES | {f"train/low-{i}.png": photograph(i, 20, 90, 1) for i in range(4)}
    folder = str(builder("bench-small", files))
    arguments = ("bench", "load", folder, "--patch", "24", "--seconds", "0.02")
    phrase = (
        "4 of 9 images are smaller than a patch of 24x24, and mirrored at their lower and right edges to fill it: "
        "photos-train-low-0, photos-train-low-1, photos-train-low-2 and 1 more"
    )
    code, out, err = cli(*arguments)
    assert (code, err) == (0, f"{folder}: {phrase}\n")
    assert "samples/s" in out
    assert cli(*arguments, "--strict") == (1, "", f"memoir: {folder}: {phrase}; lower --patch, or leave out --strict\n")
    assert cli(*arguments[:4], "16", *arguments[5:], "--strict")[0] == 0


def test_a_machine_reads_the_same_names(data, cli):
    arguments = ("--patch", "24", "--crops", "2", "--batch", "4", "--threads", "2", "--no-dihedral", "--step-ms", "1")
    code, out, _ = cli("bench", "load", str(data), *arguments, "--seconds", "0.02", "--json")
    done = json.loads(out)
    assert code == 0
    assert done.keys() == KEYS
    assert done["step_ms"] == 1
    assert done["samples"] == 4 * done["batches"]  # 2 crops of 10 versions: nothing is padded


@pytest.mark.parametrize(
    ("arguments", "sampling", "rest"),
    [
        ("", RandomCrops(256, 1), {"batch": 32, "threads": 1, "seconds": 5, "step_ms": 5}),
        ("--patch 31 --stride 21", Grid(31, 21), {}),
        ("--stride 21 --no-dihedral", Grid(256, 21, dihedral=False), {}),
        (
            "--crops 4 --no-dihedral --batch 8 --threads 2",
            RandomCrops(256, 4, dihedral=False),
            {"batch": 8, "threads": 2},
        ),
    ],
)
def test_the_options_say_what_is_loaded(cli, monkeypatch, arguments, sampling, rest):
    asked = {}

    def remember(folder, split, **options):
        asked.update(folder=folder, split=split, **options)
        raise UserError("enough")

    monkeypatch.setattr(bench, "bench_load", remember)
    cli("bench", "load", "somewhere", *arguments.split())
    expected = {"folder": Path("somewhere"), "split": "train", "sampling": sampling} | rest
    assert asked | expected == asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere/shards.json: not found; `memoir build` writes it"),
        (["{data}", "--split", "val"], "the inputs of split 'val' cannot be turned"),
        (["{data}", "--split", "dev"], "no split 'dev'"),
        (["{data}", "--stride", "16", "--crops", "1"], "--stride and --crops: give one"),
    ],
)
def test_a_mistake_is_one_line(data, cli, arguments, message):
    code, out, err = cli("bench", "load", *(argument.format(data=data) for argument in arguments))
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_damaged_dataset_is_refused(tmp_path):
    (tmp_path / "shards.json").write_text("{}")
    with pytest.raises(UserError, match=r"shards\.json: damaged"):
        bench_load(tmp_path, sampling=Grid(PATCH, 16))
