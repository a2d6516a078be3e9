"""Snapshots of a run's state in the memory of its nodes."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from jobs.training import snapshots as module
from jobs.training.meter import Meter
from jobs.training.snapshots import Snapshots


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def memory(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(module, "MEMORY", tmp_path / "memory")
    (tmp_path / "memory").mkdir()
    return tmp_path / "memory" / f"memoir-{os.getuid()}"


def of_run(name: str = "tiny", **how) -> tuple[Snapshots, list[str]]:
    told: list[str] = []
    return Snapshots(name, 0, **{"first_of_node": True, **how}, warn=told.append), told


def save(snapshots: Snapshots, *steps: int) -> None:
    for step in steps:
        meter = {"sums": {"loss": float(step)}, "world_size": 1, "every": 1}
        snapshots.save(step, lambda step=step: {"state": f"{step}".encode(), "more": b"x"}, meter)
    snapshots._states.wait()


def test_the_newest_snapshot_comes_back_with_the_meter(one_rank, memory, tmp_path):
    snapshots, told = of_run()
    save(snapshots, 3, 4, 5)
    step, meter = of_run()[0].newest(tmp_path / "a", after=0)
    assert (step, meter["sums"], told) == (5, {"loss": 5.0}, [])
    assert (tmp_path / "a/state").read_bytes() == b"5"
    assert snapshots._states.steps() == [4, 5]  # no more are kept
    assert sorted(at for _, at in snapshots._meters()) == [4, 5]
    assert of_run()[0].newest(tmp_path / "b", after=5) is None  # the store has it
    snapshots.remove()
    assert list(memory.iterdir()) == []


def test_a_damaged_snapshot_is_passed_over_for_the_one_before_it(one_rank, memory, tmp_path):
    snapshots, _ = of_run()
    save(snapshots, 3, 4)
    (memory / "tiny/step-00000004/state").write_bytes(b"other")
    assert of_run()[0].newest(tmp_path / "a", after=0)[0] == 3


def test_without_the_meters_of_all_ranks_the_interval_begins_anew(one_rank, memory, tmp_path):
    snapshots, _ = of_run()
    save(snapshots, 3)
    (memory / "tiny/meter-00000-00000003.json").unlink()
    assert of_run()[0].newest(tmp_path / "a", after=0) == (3, None)
    of_two = {"sums": {}, "world_size": 2, "every": 1}
    snapshots.save(4, lambda: {"state": b"4"}, of_two)
    snapshots._states.wait()
    assert of_run()[0].newest(tmp_path / "b", after=0) == (4, None)


def test_a_folder_that_somebody_else_may_write_into_is_not_used(one_rank, memory, tmp_path):
    memory.mkdir()
    memory.chmod(0o777)
    snapshots, told = of_run()
    save(snapshots, 3)
    assert told == [
        f"no snapshots: {memory}: somebody else may write into it; a lost rank costs what the store has not"
    ]
    assert snapshots.newest(tmp_path / "a", after=0) is None
    snapshots.remove()
    assert list(memory.iterdir()) == []


def test_no_room_is_told_once_and_training_goes_on(one_rank, memory, monkeypatch):
    snapshots, told = of_run()

    def full(*_):
        raise OSError(28, "No space left on device", "/dev/shm/x")

    monkeypatch.setattr(module, "write_bytes", full)
    save(snapshots, 3, 4)
    assert told == ["no snapshots: /dev/shm/x: No space left on device; a lost rank costs what the store has not"]


def test_what_nobody_has_continued_for_a_day_is_removed(one_rank, memory):
    for name in ("old", "other"):
        save(of_run(name)[0], 3)
    old = memory / "old"
    for path in (*old.rglob("*"), old):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    of_run("tiny")
    assert sorted(path.name for path in memory.iterdir()) == ["other", "tiny"]


def test_only_the_first_rank_of_a_node_writes_the_state(one_rank, memory):
    snapshots, _ = of_run(first_of_node=False)
    save(snapshots, 3)
    assert [path.name for path in (memory / "tiny").iterdir()] == ["meter-00000-00000003.json"]


def test_a_meter_goes_on_to_the_same_record():
    whole, first, second = Meter(), Meter(), Meter()
    for i in range(12):
        values = {"loss": torch.tensor(0.1 * i), "psnr": torch.tensor(20.0 + i)}
        whole.add(8, **values)
        (first if i < 7 else second).add(8, **values)
        if i == 6:
            second.restore(first.state(), torch.device("cpu"))
    assert second.spikes() == whole.spikes()
    a, b = (meter.record(torch.device("cpu")) for meter in (whole, second))
    assert {name: a[name] for name in ("loss", "psnr")} == {name: b[name] for name in ("loss", "psnr")}
