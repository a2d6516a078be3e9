import os
import subprocess
import sys
import time

import psutil
import pytest
from ray import exceptions

from pipeline.cluster import PATH_BYTES, SOCKET_BYTES, explained, rays_folder, trouble
from pipeline.errors import UserError

STARTS = "from pipeline.cluster import connect; connect(1); import ray; print('has', ray.cluster_resources()['CPU'])"


def test_a_short_tmpdir_is_left_to_ray(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/scratch/job-1")
    assert rays_folder() is None


def test_a_long_tmpdir_is_passed_over_for_arays_folder_of_ones_own(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/scratch/" + "x" * 91)
    folder = rays_folder()
    assert folder == f"/tmp/ray-{os.getuid()}"
    assert len(folder) <= PATH_BYTES - SOCKET_BYTES


def test_a_long_ray_tmpdir_is_told_with_its_cure(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/" + "x" * 91)
    with pytest.raises(
        UserError, match=r"RAY_TMPDIR=/scratch/x+: 100 characters, .* name a shorter folder, e.g. /tmp$"
    ):
        rays_folder()


@pytest.mark.parametrize(
    "error",
    [
        exceptions.OutOfMemoryError("killed\nby the monitor"),
        exceptions.OutOfDiskError("full"),
        exceptions.ObjectStoreFullError("full"),
        exceptions.NodeDiedError("gone"),
        exceptions.LocalRayletDiedError(),
        exceptions.WorkerCrashedError(),
        exceptions.ActorDiedError(),
        exceptions.ActorUnavailableError("away", None),
        exceptions.GetTimeoutError("late"),
        exceptions.RuntimeEnvSetupError("no such package"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_ray_runs_into_is_one_line(error):
    with pytest.raises(UserError) as told, explained():
        raise error
    assert "\n" not in str(told.value)
    assert str(told.value) == trouble(error)


def test_what_a_task_raises_keeps_its_traceback():
    defect = exceptions.RayTaskError("task", "traceback", ValueError("a defect"))
    with pytest.raises(exceptions.RayTaskError), explained():
        raise defect


@pytest.mark.slow
def test_ray_starts_below_a_tmpdir_of_a_hundred_characters(tmp_path):
    folder = tmp_path / ("x" * (100 - len(str(tmp_path)) - 1))
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder)}
    environment.pop("RAY_TMPDIR", None)
    done = subprocess.run([sys.executable, "-c", STARTS], env=environment, capture_output=True, text=True)
    assert done.stdout == "has 1.0\n", done.stderr


@pytest.mark.slow
def test_a_node_that_starts_late_is_waited_for():
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    raylet = None
    while raylet is None:
        assert process.poll() is None
        for each in psutil.Process(process.pid).children():
            raylet = each if "raylet" in each.name() else raylet
        time.sleep(0.005)
    raylet.suspend()
    time.sleep(45)  # Ray gives up after 30
    raylet.resume()
    output, errors = process.communicate(timeout=200)
    assert output == "has 1.0\n", errors
    assert "Ray starts slowly, this machine has other work: waiting\n" in errors
