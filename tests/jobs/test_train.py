"""Ray Train around the loop: real workers, killed for real."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import TINY_PARAMS, tiny_photographs
from ray.cluster_utils import Cluster
from tensorboardX.proto.event_pb2 import Event

from jobs.training.ray_train import Failure, Kind, classify
from pipeline.storage import UnavailableError, storage

pytestmark = pytest.mark.slow

RECIPE = {
    "model": {"name": "memnet", "memory_blocks": 2, "recursions": 1, "channels": 8, "bn_momentum": 0.05},
    "data": {"task": "tiny", "patch": 24, "stride": 16, "batch": 8},
    "optimisation": {
        "optimiser": "adam",
        "lr": 0.002,
        "schedule": "cosine",
        "length": {"steps": 240},
        "precision": "auto",
    },
    "training": {"workers": 2, "log_every": 10, "validate_every": 120, "checkpoint_every": 20},
    "evaluation": {"benchmarks": [{"benchmark": "jpeg-q10", "data": "photos/val"}]},
}
TASK = {
    "colour": "y",
    "degradation": {"kind": "jpeg", "quality": [10, 20]},
    "splits": {"train": ["photos/train"], "val": ["photos/val"]},
    "shard_bytes": 65536,
}


NOISE = {"kind": "noise", "sigma": [15, 25]}


def memoir(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memoir", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a built dataset `data/tiny` and a recipe `tiny.yaml` for it."""
    root = tmp_path_factory.mktemp("train")
    tiny_photographs(root)
    for name, content in (("params", TINY_PARAMS), ("tiny-task/tiny", TASK), ("tiny", RECIPE)):
        path = root / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    for arguments in (["ingest"], ["build", "tiny-task/tiny.yaml", "--cpus", "1"]):
        done = memoir(*arguments, cwd=root)
        assert done.returncode == 0, done.stderr
    return root


def train(root: Path, store: str, *overrides: str, address: str | None = None) -> subprocess.Popen[bytes]:
    """`memoir train` in a session of its own, its output in <store>.log."""
    log = (root / f"{store}.log").open("ab")
    sets = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "memoir", "train", "tiny.yaml", "--store", store, "--runs", f"runs-{store}", *sets]
    environment = {**os.environ, **({"RAY_ADDRESS": address} if address else {})}
    return subprocess.Popen(command, cwd=root, stdout=log, stderr=log, start_new_session=True, env=environment)


def finish(root: Path, store: str, process: subprocess.Popen[bytes]) -> dict:
    assert process.wait(timeout=400) == 0, (root / f"{store}.log").read_text()
    pointers = (root / f"runs-{store}").glob("tiny*/checkpoint.json")  # of the recipe, or of its variant
    return json.loads(max(pointers, key=lambda path: path.stat().st_mtime_ns).read_text())


def until(
    root: Path, store: str, process: subprocess.Popen[bytes], condition: Callable[[list[dict[str, Any]]], bool]
) -> None:
    """Wait until the records of rank 0 are so."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, (root / f"{store}.log").read_text()
        for path in root.glob(f"{store}/runs/*/metrics.jsonl"):
            if condition([json.loads(line) for line in path.read_text().splitlines()[:-1]]):
                return
        time.sleep(0.05)
    pytest.fail("training did not get there")


def until_step(root: Path, store: str, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until rank 0 has logged a step."""
    until(root, store, process, lambda said: any(record["step"] >= step for record in said))


def rays(process: subprocess.Popen[bytes] | psutil.Process, name: str) -> list[psutil.Process]:
    """Ray's processes below one, by a part of their titles."""
    family = psutil.Process(process.pid).children(recursive=True)
    return [each for each in family if name in " ".join(each.cmdline())]


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The ranks of an embedded run."""
    return rays(process, "RayTrainWorker")


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> dict:
    """The pointer of a run that nothing interrupted."""
    return finish(workplace, "undisturbed", train(workplace, "undisturbed"))


def records(root: Path, store: str) -> list[dict]:
    (path,) = root.glob(f"{store}/runs/*/metrics.jsonl")
    timings = {"seconds", "wait_s", "images_per_s", "network_s", "peak_mib"}
    return [{k: v for k, v in json.loads(line).items() if k not in timings} for line in path.read_text().splitlines()]


def test_a_killed_worker_is_replaced_and_the_weights_are_those_of_an_undisturbed_run(workplace, undisturbed):
    process = train(workplace, "worker")
    until_step(workplace, "worker", 60, process)
    workers = workers_of(process)
    assert len(workers) == 2
    workers[0].kill()
    assert finish(workplace, "worker", process)["sha256"] == undisturbed["sha256"]
    assert records(workplace, "worker") == records(workplace, "undisturbed")


def test_a_killed_worker_costs_no_step_that_is_in_memory(workplace, undisturbed):
    often = ["training.snapshot_every=1", "training.checkpoint_every=1000"]
    process = train(workplace, "memory", *often)
    until_step(workplace, "memory", 60, process)
    in_memory = Path(f"/dev/shm/memoir-{os.getuid()}")
    kept = {path.name for path in in_memory.iterdir()}
    workers_of(process)[1].kill()
    reached = max(record["step"] for record in records(workplace, "memory"))
    trained = finish(workplace, "memory", process)
    assert trained["sha256"] == undisturbed["sha256"]
    (step,) = re.findall(r"2 workers, from step (\d+) in memory", (workplace / "memory.log").read_text())
    assert int(step) >= reached
    # also of the interval that was interrupted, of which both ranks had a part
    assert records(workplace, "memory") == records(workplace, "undisturbed")
    assert trained["run"] in kept
    assert not (in_memory / trained["run"]).exists()


def test_a_killed_controller_of_ray_is_replaced(workplace, undisturbed):
    process = train(workplace, "controller")
    until_step(workplace, "controller", 60, process)
    (controller,) = rays(process, "TrainController")
    controller.kill()
    assert finish(workplace, "controller", process)["sha256"] == undisturbed["sha256"]
    assert "2 workers, from step-" in (workplace / "controller.log").read_text()
    assert records(workplace, "controller") == records(workplace, "undisturbed")


def test_a_run_leaves_no_actor_to_the_cluster_that_would_outlive_a_killed_driver(workplace):
    process = train(workplace, "detached")
    until_step(workplace, "detached", 20, process)
    controllers, cleaners = rays(process, "TrainController"), rays(process, "PlacementGroupCleaner")
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    assert controllers
    assert not cleaners


def test_the_same_command_continues_a_run_whose_every_process_was_killed(workplace, undisturbed):
    process = train(workplace, "all")
    until_step(workplace, "all", 100, process)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in family:
        each.kill()
    process.wait()
    interrupted = max(record["step"] for record in records(workplace, "all"))
    assert interrupted < RECIPE["optimisation"]["length"]["steps"]
    assert finish(workplace, "all", train(workplace, "all"))["sha256"] == undisturbed["sha256"]
    assert records(workplace, "all") == records(workplace, "undisturbed")


def test_a_killed_driver_leaves_no_process_behind_and_its_run_continues(workplace, undisturbed):
    process = train(workplace, "driver")
    until_step(workplace, "driver", 60, process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=180)  # agents of Ray notice last
    assert not alive
    assert finish(workplace, "driver", train(workplace, "driver"))["sha256"] == undisturbed["sha256"]


def test_a_finished_run_is_found_and_not_run_again(workplace, undisturbed):
    before = {p: p.stat().st_mtime_ns for p in (workplace / "undisturbed").rglob("*") if p.is_file()}
    began = time.monotonic()
    assert finish(workplace, "undisturbed", train(workplace, "undisturbed")) == undisturbed
    assert time.monotonic() - began < 20
    assert before == {p: p.stat().st_mtime_ns for p in (workplace / "undisturbed").rglob("*") if p.is_file()}


def test_a_recipe_for_gpus_on_a_machine_without_is_one_line(workplace):
    recipe = {**RECIPE, "training": {**RECIPE["training"], "gpu": True}}
    (workplace / "gpu.yaml").write_text(yaml.safe_dump(recipe))
    done = memoir("train", "gpu.yaml", "--store", "gpu", cwd=workplace)
    assert done.returncode == 1
    assert "GPU" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_mixture_that_trackers_follow_pauses_and_goes_on_and_is_trained_further(workplace):
    """On a cluster whose nodes know nothing of the trackers, with two workers."""
    (workplace / "tiny-task/noisy.yaml").write_text(yaml.safe_dump(TASK | {"degradation": NOISE}))
    assert memoir("build", "tiny-task/noisy.yaml", "--cpus", "1", cwd=workplace).returncode == 0
    mix = [{"task": "tiny", "weight": 3}, {"task": "noisy", "levels": {25: 1}}]
    data = {key: value for key, value in RECIPE["data"].items() if key != "task"} | {"mix": mix}
    length = {"length": {"steps": 20}, "schedule": "constant"}
    (workplace / "mixed.yaml").write_text(
        yaml.safe_dump(
            RECIPE
            | {"data": data, "optimisation": RECIPE["optimisation"] | length}
            | {"training": RECIPE["training"] | {"validate_every": 20, "checkpoint_every": 10}}
        )
    )
    shown = {"WANDB_MODE": "offline", "WANDB_DIR": str(workplace), "MLFLOW_ALLOW_FILE_STORE": "true"}
    shown |= {"MLFLOW_TRACKING_URI": f"file:{workplace}/mlruns"}
    places = ["--store", "mixed-store", "--runs", "mixed-runs"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})

    def told(*arguments: str) -> str:
        command = [sys.executable, "-m", "memoir", *arguments, *places]
        environment = {**os.environ, **shown, "RAY_ADDRESS": cluster.address}
        done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, check=False)
        assert "left out" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if done.returncode == 0 else done.stderr.splitlines()[-1]

    try:
        first = ["--set", "training.track=[mlflow,wandb]", "--set", "training.until=10"]
        assert "pauses at step 10" in told("train", "mixed.yaml", *first)
        tracked = ["--set", "training.track=[mlflow]"]
        assert ": 20 steps; " in told("train", "mixed.yaml", *tracked)
        longer = ["--set", "optimisation.length.steps=30", "--set", "training.checkpoint_every=15"]
        assert ": 30 steps; " in told("continue", "mixed.yaml", *longer, *tracked)
    finally:
        cluster.shutdown()
    whole, further = (
        json.loads(path.read_text())
        for path in sorted((workplace / "mixed-runs").glob("mixed*/checkpoint.json"), key=lambda each: len(str(each)))
    )
    noisy = json.loads((workplace / "data/noisy/shards.json").read_text())
    assert whole["data"]["mixed_with"] == further["data"]["mixed_with"] == {"noisy": noisy["digest"]}
    told_of = {  # steps by run: of rank 0 alone, and those before the pause and after it in the same run
        path.parents[1].joinpath("tags/mlflow.runName").read_text(): [
            int(line.split()[2]) for line in path.read_text().splitlines()
        ]
        for path in (workplace / "mlruns").rglob("metrics/loss")
    }
    assert told_of == {whole["run"]: [10, 20], further["run"]: [30]}
    (offline,) = workplace.glob(f"wandb/offline-run-*-{whole['run']}/*.wandb")
    assert b"val_psnr" not in offline.read_bytes()  # of step 20
    assert b"grad_norm" in offline.read_bytes()


def test_what_ended_a_run_is_told_by_its_cause():
    from ray.exceptions import RayActorError
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

    def failed(*errors: Exception) -> WorkerGroupError:
        workers = {i: UserExceptionWithTraceback(error, "traceback") for i, error in enumerate(errors)}
        return WorkerGroupError("failed", workers)

    full = OSError(errno.ENOSPC, "No space left on device", "store/model.safetensors")
    wrapped = RuntimeError("upload failed")
    wrapped.__cause__ = full
    for error in (full, wrapped):
        mistake = Failure(Kind.MISTAKE, "store/model.safetensors: No space left on device")
        assert classify(failed(error)) == mistake
    both = failed(RuntimeError("connection closed by peer"), UnavailableError("the store is away"))
    assert classify(both) == Failure(Kind.MISTAKE, "the store is away")
    assert classify(failed(OSError(errno.EIO, "Input/output error"))).kind is Kind.DEFECT
    assert classify(failed(ValueError("a defect"))).kind is Kind.DEFECT
    gone = WorkerHealthCheckFailedError("rank 1 is gone", RayActorError())
    died = WorkerGroupError("failed", {0: UserExceptionWithTraceback(RuntimeError("closed by peer"), ""), 1: gone})
    assert classify(died).kind is Kind.LOST


def test_a_worker_that_stands_still_is_ended_with_the_stacks_of_the_one_that_waits_for_it(workplace, undisturbed):
    process = train(workplace, "still", "training.hang_s=20")
    until_step(workplace, "still", 60, process)
    workers_of(process)[0].suspend()
    assert finish(workplace, "still", process)["sha256"] == undisturbed["sha256"]
    stacks = [path.read_text() for path in workplace.glob("still/runs/*/hung/*.txt")]
    waits = (  # for the statistics, for what is larger, or for the gradients, which DDP exchanges within the backward pass
        "jobs/models/node_memory.py",
        "torch/distributed/",
        "torch/autograd/graph.py",
    )
    assert any("in step" in text and any(place in text for place in waits) for text in stacks), stacks
    assert "stood still for 20 s; its stacks: " in (workplace / "still.log").read_text()


DEFECT = """
import builtins, sys
real = builtins.__import__
def hooked(name, *arguments, **options):
    module = real(name, *arguments, **options)
    loop = sys.modules.get("jobs.training.loop")
    if hasattr(loop, "json_lines"):  # the last of its names: it is there whole
        def validate(run, beat):
            raise RuntimeError("a defect of validation")
        loop.Run.validate = validate
    return module
builtins.__import__ = hooked
"""


def test_a_defect_that_comes_again_at_the_same_step_ends_the_run_at_once_with_its_work_saved(workplace, monkeypatch):
    (workplace / "defect").mkdir()
    (workplace / "defect/sitecustomize.py").write_text(DEFECT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [workplace / "defect", *sys.path])))
    process = train(workplace, "defect-store", "training.max_failures=8")
    assert process.wait(timeout=400) == 1
    log = (workplace / "defect-store.log").read_text()
    assert re.search(r"rank \d met it again at step 120, so there is no use in another start", log), log
    assert "RuntimeError: a defect of validation" in log
    assert log.count("workers, ") == 2  # starts
    assert [path.parent.name for path in workplace.glob("defect-store/runs/*/*/checkpoint.sha256")][
        -1
    ] == "step-00000120"
    monkeypatch.delenv("PYTHONPATH")
    finish(workplace, "defect-store", train(workplace, "defect-store", "training.max_failures=8"))


def test_a_damaged_shard_ends_the_run_in_one_line(workplace):
    shutil.copytree(workplace / "data", workplace / "damaged")
    shard = next((workplace / "damaged/tiny/train").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:5000] + b"x" + shard.read_bytes()[5001:])
    done = memoir("train", "tiny.yaml", "--store", "none", "--data", "damaged", cwd=workplace)
    assert done.returncode == 1
    assert shard.name in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_run_in_a_bucket_leaves_there_what_one_in_a_folder_leaves(workplace, undisturbed, s3):
    done = memoir("train", "tiny.yaml", "--store", s3, "--runs", "runs-bucket", cwd=workplace)
    assert done.returncode == 0, done.stderr
    pointer = json.loads((workplace / "runs-bucket/tiny/checkpoint.json").read_text())
    assert pointer["sha256"] == undisturbed["sha256"]
    there = storage(f"{s3}/runs/{pointer['run']}")
    steps = sorted({name.split("/")[0] for name in there.names("step-")})
    assert steps[-2:] == ["step-00000220", "step-00000240"]
    assert len(steps) <= 3  # and the best on the val split
    assert len(there.names(steps[-1])) == 6
    *before, validated = there.read("metrics.jsonl").splitlines(keepends=True)
    assert b"".join(before) == there.read("step-00000240/metrics.jsonl")
    assert json.loads(validated).keys() == {"step", "epoch", "val_psnr"}  # after the checkpoint of its step
    assert curves(there.read(there.names("tensorboard/")[0]))["loss"] == [
        (record["step"], pytest.approx(record["loss"]))
        for record in records(workplace, "undisturbed")
        if "loss" in record
    ]


def curves(events: bytes) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of an event file: its records are a length, a checksum, a message and a checksum."""
    shown: dict[str, list[tuple[int, float]]] = {}
    at = 0
    while at < len(events):
        (length,) = struct.unpack_from("<Q", events, at)
        event = Event.FromString(events[at + 12 : at + 12 + length])
        for value in event.summary.value:
            shown.setdefault(value.tag, []).append((event.step, value.simple_value))
        at += 16 + length
    return shown


def test_workers_come_and_go_and_the_steps_are_those_of_a_fixed_number(workplace):
    """2, 1 and 2 workers on nodes that are added and lost, beside 2 all the time. fp32: sums differ in their last bits."""
    # steps that are slow enough for a second worker to come back in time
    slow = ["data.patch=48", "model.channels=16", "optimisation.length={steps: 900}"]
    options = [*slow, "optimisation.precision=fp32", "training.resize_every_s=2"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        process = train(workplace, "elastic", *options, "training.workers=[1, 4]", address=cluster.address)
        until_step(workplace, "elastic", 60, process)
        cluster.remove_node(node, allow_graceful=False)
        until(workplace, "elastic", process, lambda said: any(record.get("workers") == 1 for record in said))
        cluster.add_node(num_cpus=2)  # room for 3, which does not divide the batch
        finish(workplace, "elastic", process)
        finish(workplace, "fixed", train(workplace, "fixed", *options, address=cluster.address))
    finally:
        cluster.shutdown()
    elastic, fixed = (
        {record["step"]: record for record in records(workplace, store) if "loss" in record}
        for store in ("elastic", "fixed")
    )
    numbers = [record["workers"] for record in elastic.values()]
    assert [number for number, _ in itertools.groupby(numbers)] == [2, 1, 2]
    assert elastic.keys() == fixed.keys()
    for step, record in elastic.items():
        assert record["epoch"] == fixed[step]["epoch"]
        assert record["loss"] == pytest.approx(fixed[step]["loss"], rel=0.01), step


def test_a_node_that_will_be_taken_has_the_state_saved_at_once(workplace, undisturbed):
    """As a cloud tells it: the node is drained, and gone soon after. No checkpoint is due before the end."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        process = train(workplace, "taken", "training.checkpoint_every=1000", address=cluster.address)
        until_step(workplace, "taken", 40, process)
        command = [Path(sys.executable).parent / "ray", "drain-node", "--address", cluster.address]
        reason = ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
        ranks = rays(psutil.Process(), "RayTrainWorker")
        assert len(ranks) == 2
        for rank in ranks:  # else they might be through before the notice comes
            rank.suspend()
        subprocess.run([*command, *reason, "--deadline-remaining-seconds", "60"], check=True, capture_output=True)
        time.sleep(6)  # Ray looks every 5 s
        for rank in ranks:
            rank.resume()
        log, saved = workplace / "taken.log", None
        while not (saved := re.search(r"nodes of ranks \[(\d)\] will be taken: saving step (\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        checkpoint = f"step-{int(saved[2]):08d}"
        while not list(workplace.glob(f"taken/runs/*/{checkpoint}/checkpoint.sha256")):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        assert finish(workplace, "taken", process)["sha256"] == undisturbed["sha256"]
    finally:
        cluster.shutdown()
    assert f"2 workers, from {checkpoint}\n" in log.read_text()


# `memoir train` whose CPU somebody else takes between the look at what is free and the start of the workers
LATE = """
import os, time, ray, memoir, jobs.training.ray_train, jobs.training.train
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"], jobs.training.ray_train.WITHOUT_ROOM_S = "3", 6
look = jobs.training.train.connect
def connect(*arguments, **options):
    look(*arguments, **options)
    jobs.training.train.other = ray.remote(num_cpus=1)(lambda: time.sleep(40)).remote()
    while ray.available_resources()["CPU"] > 1:
        time.sleep(0.1)
jobs.training.train.connect = connect
memoir.main()
"""


def test_a_run_whose_room_another_took_first_waits_for_it(workplace, undisturbed):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        command = [sys.executable, "-c", LATE, "train", "tiny.yaml", "--store", "late", "--runs", "runs-late"]
        address = cluster.address
        environment = {**os.environ, "RAY_ADDRESS": address}
        done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=400)
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stderr
    assert f"2 CPUs are needed and Ray ({address}) has 1 of 2 free: waiting" in done.stdout + done.stderr
    assert json.loads((workplace / "runs-late/tiny/checkpoint.json").read_text())["sha256"] == undisturbed["sha256"]


# `memoir train` whose workers are lost, the first time, after they took their room and before they train
HALFWAY = """
import os, ray, signal, memoir, jobs.training.ray_train
from pathlib import Path
jobs.training.ray_train.PAUSE_S = 0
first = Path("halfway").resolve()
class Halfway(jobs.training.ray_train.Group):
    @property
    def backend_cls(self):
        base = super().backend_cls
        class Backend(base):
            def on_start(self, *arguments, **options):
                try:
                    first.touch(exist_ok=False)
                except FileExistsError:
                    return base().on_start(*arguments, **options)
                raise ray.exceptions.ActorDiedError
        return Backend
jobs.training.ray_train.Group = Halfway
on_ctrl_c = signal.getsignal(signal.SIGINT)
try:
    memoir.main()
finally:
    print("Ctrl-C as before:", signal.getsignal(signal.SIGINT) is on_ctrl_c)
"""


def test_a_start_that_fails_halfway_does_not_keep_the_room_of_the_next(workplace, undisturbed):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    command = [sys.executable, "-c", HALFWAY, "train", "tiny.yaml", "--store", "half", "--runs", "runs-half"]
    options = {"env": {**os.environ, "RAY_ADDRESS": cluster.address}, "cwd": workplace, "timeout": 400}
    try:
        once = ["--set", "training.max_failures=0"]
        failed = subprocess.run([*command, *once], capture_output=True, text=True, check=False, **options)
        (workplace / "halfway").unlink()
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    finally:
        cluster.shutdown()
    assert failed.returncode == 1
    assert "more often than the 0 times that training.max_failures allows" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert done.returncode == 0, done.stderr
    assert (workplace / "halfway").exists()
    assert "Ctrl-C as before: True" in done.stdout
    assert json.loads((workplace / "runs-half/tiny/checkpoint.json").read_text())["sha256"] == undisturbed["sha256"]


# `memoir train` with less patience
HASTY = """
import os, memoir, jobs.training.ray_train
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"], jobs.training.ray_train.WITHOUT_ROOM_S = "3", 6
memoir.main()
"""


# The memory of each node apart, as on machines of their own: this one has a single /dev/shm.
MEMORIES = """
import builtins, os, pathlib, sys
real = builtins.__import__
def hooked(name, *arguments, **options):
    module = real(name, *arguments, **options)
    snapshots = sys.modules.get("jobs.training.snapshots")
    if hasattr(snapshots, "_remove_stale") and "MEMORY_OF_NODE" in os.environ:  # the last of its names: it is there whole
        snapshots.MEMORY = pathlib.Path(os.environ["MEMORY_OF_NODE"])
    return module
builtins.__import__ = hooked
"""


def test_a_run_that_loses_a_node_goes_on_from_the_memory_of_the_other(workplace, undisturbed, monkeypatch):
    """A third node has room, and nothing in its memory; no checkpoint is in the store."""
    (workplace / "memories").mkdir()
    (workplace / "memories/sitecustomize.py").write_text(MEMORIES)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [workplace / "memories", *sys.path])))
    cluster, nodes = Cluster(), {}
    try:
        for name in ("head", "one", "other"):
            memory = workplace / "memories" / name
            memory.mkdir()
            nodes[memory] = cluster.add_node(num_cpus=1, env_vars={"MEMORY_OF_NODE": str(memory)})
        often = ["training.snapshot_every=1", "training.checkpoint_every=1000"]
        process = train(workplace, "nodes", *often, address=cluster.address)
        until_step(workplace, "nodes", 60, process)
        used = [memory for memory in nodes if list(memory.rglob("meter-*"))]  # Ray chose two of them
        assert len(used) == 2
        assert all(list(memory.rglob("checkpoint.sha256")) for memory in used)  # each has the whole state
        lost = used[-1]  # not the first one, which is the cluster's head
        cluster.remove_node(nodes[lost], allow_graceful=False)
        assert finish(workplace, "nodes", process)["sha256"] == undisturbed["sha256"]
    finally:
        cluster.shutdown()
    said = (workplace / "nodes.log").read_text()
    assert said.count("2 workers, from ") == 2
    (step,) = re.findall(r"2 workers, from step (\d+) in memory", said)
    assert int(step) >= 60


def test_a_run_whose_node_is_lost_for_good_ends_in_one_line_and_goes_on_where_there_is_room(workplace, undisturbed):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        command = [sys.executable, "-c", HASTY, "train", "tiny.yaml", "--store", "alone", "--runs", "runs-alone"]
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        with (workplace / "alone.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=workplace, stdout=log, stderr=log, env=environment)
        until_step(workplace, "alone", 40, process)
        cluster.remove_node(node, allow_graceful=False)
        assert process.wait(timeout=120) == 1
        said = (workplace / "alone.log").read_text()
        unknown_yet = r"2 CPUs are needed and Ray \(.*\) has 1 of 1 free: ask for fewer"  # that it is lost
        assert re.search(rf"had no room for 2 workers; CPU: each needs 1, and there are 1\n|{unknown_yet}", said)
        assert "Traceback" not in said
        cluster.add_node(num_cpus=1)
        again = train(workplace, "alone", address=cluster.address)
        assert finish(workplace, "alone", again)["sha256"] == undisturbed["sha256"]
    finally:
        cluster.shutdown()
