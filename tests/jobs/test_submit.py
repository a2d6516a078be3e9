"""Training on a remote cluster: what is decided here, and real jobs on a real cluster with tokens."""

import json
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import ray
import yaml
from conftest import SECRET, TINY_PARAMS, Workplace, photograph, table_file
from http_fakes import answering
from ray._private.utils import check_version_info
from ray.job_submission import JobDetails, JobStatus, JobType

from jobs.origin import digest, origin
from jobs.training import submit
from jobs.training.run import plan_run
from pipeline.cluster import address_to_join, connect, jobs_address
from pipeline.errors import UserError
from pipeline.shards import build as stage
from pipeline.shards import plan
from pipeline.shards.format import read_shards_json, samples_digest
from pipeline.shards.shard_set import ShardSet
from pipeline.storage import Folder, storage

RECIPE = {
    "model": {"name": "memnet", "memory_blocks": 2, "recursions": 1, "channels": 8, "bn_momentum": 0.05},
    "data": {"task": "tiny", "patch": 24, "stride": 16, "batch": 8},
    "optimisation": {"optimiser": "adam", "lr": 0.002, "schedule": "cosine", "length": {"steps": 20}},
    "training": {"workers": 1, "log_every": 5, "validate_every": 20, "checkpoint_every": 20},
    "evaluation": {"benchmarks": [{"benchmark": "jpeg-q10", "data": "photos/val"}]},
}
PATIENCE = 240  # seconds for one client, on a machine that does other things
LONG = ["--set", "optimisation.length.steps=100000", "--set", "training.checkpoint_every=2000"]


NETWORK = """
from torch import nn


class One(nn.Module):
    def __init__(self, img_channel: int = 1):
        super().__init__()
        self.body = nn.Conv2d(img_channel, img_channel, 3, padding=1)

    def forward(self, lq):
        return lq + self.body(lq)
"""


@pytest.fixture
def root(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a dataset built into data/tiny, and the recipe tiny.yaml."""
    monkeypatch.setattr(stage, "FEW", 10**6)
    for i in range(16):
        workplace.add(f"train/{i}.png", photograph(i, 96, 96))
    workplace.add("val/0.png", photograph(99, 64, 64))
    workplace.ingest()
    workplace.build()
    (workplace.root / "tiny.yaml").rename(workplace.root / "task.yaml")
    (workplace.root / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    (workplace.root / "params.yaml").write_text(yaml.safe_dump(TINY_PARAMS))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MEMOIR_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    return workplace.root


def job(submission_id: str | None, status: str, store: str = "/store", **columns: object) -> JobDetails:
    metadata = {"run": "r", "store": store}
    kind = JobType.SUBMISSION if submission_id else JobType.DRIVER
    return JobDetails(
        type=kind, submission_id=submission_id, status=JobStatus(status), entrypoint="", metadata=metadata, **columns
    )


# which job


def test_the_first_job_of_a_run_has_number_one_whatever_else_is_on_the_cluster():
    others = [
        job("r-abcd-a3", "RUNNING"),
        job("xr-abc-a1", "RUNNING"),
        job(None, "RUNNING"),
        job("r-abc-a1x", "RUNNING"),
    ]
    assert submit.attempt("r-abc", "/store", others) == ("r-abc-a1", False)


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_job_on_its_way_is_the_one_to_follow(status):
    jobs = [job("r-abc-a10", status), job("r-abc-a9", "FAILED"), job("r-abc-a1", "STOPPED")]
    assert submit.attempt("r-abc", "/store", jobs) == ("r-abc-a10", True)


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_after_a_job_that_has_ended_comes_the_next_number(status):
    assert submit.attempt("r-abc", "/store", [job("r-abc-a2", "FAILED"), job("r-abc-a10", status)]) == (
        "r-abc-a11",
        False,
    )


def test_a_job_that_trains_into_another_store_is_not_followed():
    jobs = [job("r-abc-a1", "RUNNING"), job("r-abc-a2", "RUNNING", store="s3://other")]
    assert submit.attempt("r-abc", "/store", jobs) == ("r-abc-a1", True)
    assert submit.attempt("r-abc", "s3://third", jobs) == ("r-abc-a3", False)


# what it said


def test_a_mistake_told_in_the_job_is_told_in_its_words_with_its_exit_code():
    log = "exit code 1, last available logs\nstep 1\nmemoir: data/tiny: no split 'val'\n(raylet) worker died\n"
    error = submit.failed("r-a1", job("r-a1", "FAILED", message=log, driver_exit_code=1))
    assert error is not None
    assert (str(error), error.exit_code) == ("data/tiny: no split 'val'", 1)


@pytest.mark.parametrize(
    ("message", "code", "exit_code", "parts"),
    [
        ("Traceback\nValueError: a defect\n", 3, 3, ["exit code 3", "ValueError: a defect"]),
        ("killed", -9, 137, ["exit code 137"]),
        ("runtime_env setup failed: x", None, 1, ["exit code 1", "runtime_env setup failed: x"]),
        ("sh: python: not found", 127, 127, ["MEMOIR_PYTHON"]),
        ("ModuleNotFoundError: No module named 'typer'", 1, 1, ["typer", "MEMOIR_PYTHON"]),
        (None, 1, 1, ["Job failed."]),
    ],
)
def test_any_other_end_is_its_last_line_and_its_exit_code(message, code, exit_code, parts):
    error = submit.failed("r-a1", job("r-a1", "FAILED", message=message or "Job failed.", driver_exit_code=code))
    assert error is not None
    assert error.exit_code == exit_code
    assert all(part in str(error) for part in ["r-a1", *parts])
    assert "\n" not in str(error)


def test_a_stopped_job_is_a_failure_and_a_succeeded_one_is_none():
    stopped = submit.failed("r-a1", job("r-a1", "STOPPED"))
    assert stopped is not None
    assert stopped.exit_code == 130
    assert submit.failed("r-a1", job("r-a1", "SUCCEEDED", driver_exit_code=0)) is None


def test_a_log_that_begins_again_is_written_once(capsys):
    text = "".join(f"step {i}\n" for i in range(100))
    log = submit.Log()
    for end, size in ((0, 1), (200, 7), (150, 50), (201, 1000), (len(text), 13)):
        log.connected()
        for at in range(0, end, size):
            log.write(text[at : min(at + size, end)])
    assert capsys.readouterr().out == text


# what it is given


@pytest.fixture
def code(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder as it may look after some work; it stands for this one."""
    folder = root / "project"
    for i in range(12):
        (folder / "jobs/recipes").mkdir(parents=True, exist_ok=True)
        (folder / f"jobs/recipes/{i}.yaml").write_bytes(bytes(10 * i))
    for name in ("memoir.py", "pipeline/tasks/a.yaml", "jobs/training/submit.py", "jobs/report/page.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(5000 + len(name)))
    for name in (
        "jobs/__pycache__/submit.pyc",
        "jobs/.env",
        "pipeline/.cache/shard",
        "data/x.tar",
        ".git/config",
        "key",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(10_000))
    monkeypatch.setattr(submit, "__file__", str(folder / "jobs/training/submit.py"))
    return folder


def test_a_job_is_given_the_code_and_its_recipe_and_nothing_else(code):
    planned = plan_run("tiny.yaml", data="data", store="store")
    with submit.working_dir(planned) as folder:
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    given = {"memoir.py", "pipeline/tasks/a.yaml", "jobs/training/submit.py", "jobs/report/page.html", "tiny.yaml"}
    assert files == given | {f"jobs/recipes/{i}.yaml" for i in range(12)}
    assert not folder.exists()


def test_code_that_ray_would_refuse_names_the_ten_largest_files(code, monkeypatch):
    planned = plan_run("tiny.yaml", data="data", store="store")
    with submit.working_dir(planned) as folder:
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    monkeypatch.setattr(submit, "LIMIT", total)
    with submit.working_dir(planned):
        pass
    monkeypatch.setattr(submit, "LIMIT", total - 1)
    with pytest.raises(UserError) as error, submit.working_dir(planned):
        pass
    text, listed = str(error.value).split("the largest: ")
    assert f"{total:,}" in text
    assert f"{total - 1:,}" in text
    names, sizes = zip(*(each.split(" ") for each in listed.split(", ")), strict=True)
    assert names[:2] == ("jobs/training/submit.py", "jobs/report/page.html")
    assert len(names) == 10
    numbers = [int(size.replace(",", "")) for size in sizes]
    assert numbers == sorted(numbers, reverse=True)


def test_the_recipe_that_a_job_is_given_is_the_same_run(root):
    planned = plan_run("tiny.yaml", data="data", store="store", overrides=["optimisation.lr=0.001"])
    with submit.working_dir(planned) as folder:
        again = plan_run(str(folder / "tiny.yaml"), data="data", store="store")
    assert again.run == planned.run
    assert again.recipe.model_dump() == planned.recipe.model_dump()
    assert again.recipe.optimisation.lr == 0.001


@pytest.fixture
def own(root: Path) -> Iterator[Path]:
    """The package of a network of one's own, which own.yaml trains."""
    name = f"net_{uuid.uuid4().hex}"
    (root / name).mkdir()
    (root / name / "__init__.py").write_text("")
    (root / name / "one.py").write_text(NETWORK)
    (root / name / "notes.txt").write_text("not a part of the source")
    model = {"model": {"name": f"{name}.one:One"}, "objective": {"l1": 1.0}}
    (root / "own.yaml").write_text(yaml.safe_dump(RECIPE | model))
    yield root / name
    for known in [known for known in sys.modules if known.split(".")[0] == name]:
        del sys.modules[known]


def test_a_network_of_ones_own_goes_along_and_is_the_same_run_there(own, monkeypatch):
    planned = plan_run("own.yaml", data="data", store="store")
    with submit.working_dir(planned) as folder:
        assert {path.name for path in (folder / own.name).iterdir()} == {"__init__.py", "one.py"}
        entered = f"import os; os.chdir({str(folder)!r}); from jobs.training.train import plan_run;"
        program = entered + f"print(plan_run('own.yaml', data={str(own.parent / 'data')!r}, store='store').run)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == planned.run


def test_the_limit_is_that_of_the_installed_ray():
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    assert submit.LIMIT == DASHBOARD_CLIENT_MAX_SIZE


def test_the_command_survives_a_shell(root, monkeypatch):
    monkeypatch.setenv("MEMOIR_PYTHON", "/opt/my env/python")
    planned = plan_run("tiny.yaml", data="data", store="store")
    command = submit.entrypoint(planned, "/a b/data", "s3://bucket/$HOME")
    shown = subprocess.run(f"printf '%s\\n' {command}", shell=True, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [
        *["/opt/my env/python", "-m", "memoir", "train", "tiny.yaml", "--run", planned.run],
        *["--data", "/a b/data", "--store", "s3://bucket/$HOME"],
    ]


def test_a_job_of_other_code_or_shards_refuses_and_names_both_runs(root, cli):
    planned = plan_run("tiny.yaml", data="data", store="store")
    code, _, error = cli("train", "tiny.yaml", "--run", "tiny-0123456789ab")
    assert code == 1
    assert error.startswith("memoir: ")
    assert "tiny-0123456789ab" in error
    assert planned.run in error
    assert error.count("\n") == 1


def test_a_name_that_no_job_can_have_is_refused(root, monkeypatch):
    (root / "tiny.yaml").rename(root / "my recipe?.yaml")
    planned = plan_run("my recipe?.yaml", data="data", store="store")
    with pytest.raises(UserError, match=r"my recipe\?.*rename"):
        submit.submit(planned, None)


# which cluster


@pytest.mark.parametrize(
    ("variables", "joined", "jobs"),
    [
        ({}, "", None),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "10.0.0.1:6379", None),
        ({"RAY_ADDRESS": "auto"}, "auto", None),
        ({"RAY_ADDRESS": "http://head:8265"}, "", "http://head:8265"),
        ({"RAY_ADDRESS": "https://head"}, "", "https://head"),
        ({"RAY_API_SERVER_ADDRESS": "http://head:8265"}, "", "http://head:8265"),
        ({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_API_SERVER_ADDRESS": "https://h"}, "10.0.0.1:6379", "https://h"),
    ],
)
def test_the_scheme_decides_between_joining_and_jobs(variables, joined, jobs, root, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (address_to_join(), jobs_address()) == (joined, jobs)


@pytest.mark.parametrize(
    ("variable", "value", "hint"),
    [
        ("RAY_ADDRESS", "ray://head:10001", "http://<head>:8265"),
        ("RAY_API_SERVER_ADDRESS", "head:8265", "http://<head>"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_the_one_that_can(variable, value, hint, root, monkeypatch, cli):
    monkeypatch.setenv(variable, value)
    code, _, error = cli("train", "tiny.yaml")
    assert code == 1
    assert error.startswith(f"memoir: {variable}={value}: ")
    assert hint in error
    assert error.count("\n") == 1


def test_without_a_cluster_there_is_nothing_to_submit_to(root, cli):
    code, _, error = cli("submit", "tiny.yaml", "--store", "store")
    assert code == 1
    assert "RAY_ADDRESS=http://" in error
    for arguments in ((), ("tiny.yaml", "--all")):
        code, _, error = cli("submit", *arguments)
        assert code == 1
        assert "--all" in error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_cluster_that_does_not_answer_is_named_without_its_password(root, monkeypatch, cli):
    monkeypatch.setenv("RAY_ADDRESS", f"http://me:{SECRET}@127.0.0.1:{free_port()}")
    code, _, error = cli("train", "tiny.yaml")
    assert code == 1
    assert re.match(r"memoir: http://127\.0\.0\.1:\d+: no answer", error)
    assert SECRET not in error


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        ('{"version": "4", "ray_version": "2.40.0"}', ["Ray 2.40.0", "same release"]),
        ('{"version": "4"}', ["ray_version"]),
        ("<html>hello</html>", ["no answer of a Ray cluster"]),
    ],
)
def test_another_release_of_ray_and_another_server_are_told(answer, parts, root, monkeypatch, cli):
    with answering(answer.encode()) as url:
        monkeypatch.setenv("RAY_ADDRESS", url)
        code, _, error = cli("train", "tiny.yaml")
    assert code == 1
    assert error.startswith(f"memoir: {url}: ")
    assert all(part in error for part in parts)
    assert error.count("\n") == 1


def test_a_cluster_to_join_of_another_ray_or_python_is_one_line(monkeypatch):
    theirs = {"ray_version": "2.9.0", "python_version": "3.10.13"}
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test may have one
    monkeypatch.setattr(ray, "init", lambda **_: check_version_info(theirs, "here"))  # as Ray itself does
    with pytest.raises(UserError) as told:
        connect(1)
    here = f"here are Ray {ray.__version__} and Python {platform.python_version()}"
    beginning = f"10.0.0.1:6379: the cluster has Ray 2.9.0 and Python 3.10.13, {here};"
    assert str(told.value).startswith(beginning)


def test_an_older_python_on_the_cluster_is_one_line():
    older = "import runpy, sys; sys.version_info = (3, 9, 18); runpy.run_module('memoir', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", older], capture_output=True, text=True)
    line = f"memoir: needs Python 3.11 or newer, and {sys.executable} is Python 3.9"
    assert (done.returncode, done.stderr.splitlines()) == (1, [line])


# data in a bucket


def send(root: Path, bucket: str) -> str:
    planned = plan_run("tiny.yaml", data="data", store=bucket)
    assert isinstance(planned.built, Folder)
    return submit.send(planned.datasets, planned.store)


def test_a_dataset_in_a_bucket_has_the_samples_and_the_run_of_the_folder(root, s3):
    data = send(root, s3)
    here, there = ShardSet(root / "data/tiny", "train"), ShardSet(f"{data}/tiny", "train")
    assert samples_digest(there.listing) == samples_digest(here.listing)
    assert plan_run("tiny.yaml", data=data, store=s3).run == plan_run("tiny.yaml", data="data", store=s3).run
    pairs = zip(here.versions(), there.versions(), strict=True)
    assert all((a.planes["lq"] == b.planes["lq"]).all() and (a.planes["gt"] == b.planes["gt"]).all() for a, b in pairs)


def test_a_dataset_in_a_bucket_is_verified_there(root, s3, cli):
    place = f"{send(root, s3)}/tiny"
    code, out, err = cli("verify", place)
    assert (code, out.startswith(f"{place}: "), err) == (0, True, "")
    (other, cut, *_) = sorted({shard["name"] for shard in read_shards_json(storage(place))["shards"]})
    whole = storage(s3).read(f"shards/{cut}")
    storage(s3).write(f"shards/{cut}", whole[:-1])
    storage(s3).remove(f"shards/{other}")
    (index,) = storage(f"{s3}/shards").names("index/")
    storage(f"{s3}/shards").write(index, b"")
    code, out, err = cli("verify", place)
    assert (code, out) == (1, "")
    damaged, *lines = err.splitlines()
    assert damaged.startswith(f"{s3}/shards/{index}: damaged")
    assert sorted(lines) == [
        f"{s3}/shards/{other}: missing; build again, or `dvc pull`",
        f"{s3}/shards/{cut}: truncated: {len(whole) - 1:,} bytes of {len(whole):,}; build again",
    ]


def test_only_what_a_bucket_lacks_is_sent(root, s3, capsys, monkeypatch):
    monkeypatch.setattr(plan, "PART", 8)  # rows: several parts of the tables
    rebuilt(root)

    def sent() -> list[int]:
        send(root, s3)
        found = re.search(r"(\d+) of (\d+) shards sent, with (\d+) of (\d+) tables", capsys.readouterr().err)
        assert found is not None
        return [int(number) for number in found.groups()]

    shards, total, tables, parts = sent()
    assert (shards, tables) == (total, parts)
    assert min(total, parts) > 2
    assert sent() == [0, total, 0, parts]
    written = {entry.name: entry.modified for entry in storage(s3).entries()}

    Workplace(root).add("train/16.png", photograph(77, 96, 96))
    rebuilt(root)
    shards, total, tables, parts = sent()
    assert 0 < shards < total
    assert 0 < tables < parts
    names = {entry.name for entry in storage(s3).entries()}
    assert written.keys() < names
    assert len([name for name in names if name.endswith("/shards.json")]) == 2  # the older dataset is whole still
    assert len(names - written.keys()) == shards + tables + 1

    for name in (".tar", ".parquet"):
        storage(s3).write(min(each for each in names if each.endswith(name)), b"cut")
    assert sent() == [1, total, 1, parts]


def rebuilt(root: Path) -> None:
    """Build data/tiny again, with the recipe where it was."""
    shutil.copy(root / "tiny.yaml", root / "recipe")
    changed = Workplace(root)
    changed.ingest()
    changed.build()
    shutil.copy(root / "recipe", root / "tiny.yaml")


def test_a_damaged_shard_or_table_never_reaches_a_bucket(root, s3):
    for place, path in (("a", min((root / "data/tiny/train").glob("*.tar"))), ("b", table_file(root / "data/tiny"))):
        whole = path.read_bytes()
        path.unlink()  # not through its hard link in the store of builds
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=f"{path.name}: missing or damaged"):
            send(root, f"{s3}/{place}")
        assert not [name for name in storage(s3).names(place) if name.endswith((path.name, "shards.json"))]
        path.unlink()
        with pytest.raises(UserError, match=f"{path.name}: missing or damaged"):
            send(root, f"{s3}/{place}")
        path.write_bytes(whole)
        send(root, f"{s3}/{place}")


DRCNET = {
    **RECIPE,
    "model": {
        "name": "drcnet",
        "width": 12,
        "levels": 3,
        "contrastive": {"alpha": 0.5, "vgg": {"path": "store/vgg19-dcbb9e9d.pth"}},
    },
}


def test_the_weights_of_vgg19_are_put_into_the_store_and_found_there(root, s3, capsys):
    (root / "tiny.yaml").write_text(yaml.safe_dump(DRCNET))
    (root / "store").mkdir()
    (root / "store/vgg19-dcbb9e9d.pth").write_bytes(b"weights")
    planned = plan_run("tiny.yaml", data="data", store=s3)
    submit._sent(planned)
    assert storage(s3).read("vgg19-dcbb9e9d.pth") == b"weights"
    expected = planned.recipe.model_dump()
    expected["model"]["contrastive"]["vgg"]["path"] = f"{s3}/vgg19-dcbb9e9d.pth"
    assert submit.with_weights(planned.recipe, planned.store).model_dump() == expected
    assert "vgg19" in capsys.readouterr().err
    submit._sent(planned)
    assert "vgg19" not in capsys.readouterr().err

    shared = plan_run("tiny.yaml", data="data", store=str(root / "store"))
    before = (root / "store/vgg19-dcbb9e9d.pth").stat()
    assert submit._sent(shared) == str(root / "data")
    assert (root / "store/vgg19-dcbb9e9d.pth").stat() == before
    assert submit.with_weights(shared.recipe, shared.store).model.contrastive.vgg.path == str(
        root / "store/vgg19-dcbb9e9d.pth"
    )
    assert digest(origin(shared.recipe, samples_digest(shared.listing))) == shared.run.rpartition("-")[2]


@pytest.mark.parametrize(
    "contrastive",
    [{"vgg": {"path": "stand-in"}}, {"vgg": {"path": "s3://bucket/vgg19-dcbb9e9d.pth"}}, None],
    ids=["stand-in", "uri", "none"],
)
def test_other_weights_stay_as_the_recipe_has_them(contrastive, root):
    (root / "tiny.yaml").write_text(
        yaml.safe_dump({**DRCNET, "model": {**DRCNET["model"], "contrastive": contrastive}})
    )
    planned = plan_run("tiny.yaml", data="data", store="store")
    assert submit.with_weights(planned.recipe, planned.store) == planned.recipe


# a real cluster


@dataclass
class Cluster:
    """A Ray head of the tests' own, with token authentication, and what a client of it has in its environment."""

    address: str
    joined: str  # the address for `ray.init`
    environment: dict[str, str]
    clients: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, cwd: Path, patch: str = "pass", **changes: str) -> subprocess.Popen[str]:
        """`memoir` as a client, its output in one stream. patch: Python that runs before it."""
        program = f"import jobs.training.submit as submit, memoir; {patch}; memoir.main()"
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=cwd,
            env={**self.environment, "RAY_ADDRESS": self.address, **changes},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell's script does with `&`
        )
        self.clients.append(process)
        guard = threading.Timer(PATIENCE, process.kill)
        guard.daemon = True
        guard.start()
        return process

    def run(self, *arguments: str, cwd: Path, **changes: str) -> tuple[int, str]:
        process = self.start(*arguments, cwd=cwd, **changes)
        output, _ = process.communicate()
        return process.returncode, output

    def jobs(self, run: str = "") -> dict[str, str]:
        """Status by submission id, of the jobs whose id begins with this."""
        from ray.job_submission import JobSubmissionClient

        client = JobSubmissionClient(self.address, headers=self.header)
        found = {each.submission_id: str(each.status) for each in client.list_jobs() if each.submission_id}
        return {name: status for name, status in found.items() if name.startswith(run)}

    def stop(self, name: str) -> None:
        from ray.job_submission import JobSubmissionClient

        JobSubmissionClient(self.address, headers=self.header).stop_job(name)

    @property
    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {Path(self.environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    ports = [free_port() for _ in range(3)]
    token = tmp_path_factory.mktemp("cluster") / "token"
    token.write_text(secrets.token_hex(32))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(submit.__file__).parents[2]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    on_nodes = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}
    folder = tempfile.mkdtemp(prefix="ray-")  # a short path: sockets are in it
    options = {
        "port": ports[0],
        "dashboard-port": ports[1],
        "dashboard-agent-listen-port": ports[2],
        "ray-client-server-port": free_port(),
        "dashboard-host": "127.0.0.1",
        "num-cpus": 2,
        "object-store-memory": 10**8,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "temp-dir": folder,
    }
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with Path(folder, "log").open("wb") as log:
        head = subprocess.Popen(
            command,
            env=environment | on_nodes,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    cluster = Cluster(f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}", environment)
    try:
        wait_for(lambda: head.poll() is None and cluster.jobs() == {}, "the cluster to answer")
        yield cluster
    finally:
        mine = [psutil.Process(each.pid) for each in (head, *cluster.clients) if each.poll() is None]
        mine += [child for process in mine for child in process.children(recursive=True)]
        for process in mine:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(mine, timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(ConnectionError, RuntimeError):
            if condition():
                return
        time.sleep(0.3)
    pytest.fail(f"waited in vain for {what}")


def until_line(process: subprocess.Popen[str], pattern: str) -> str:
    """Read a client's output up to a line with this in it; returns what was read."""
    return until(process, lambda line: re.search(pattern, line) is not None)


def until_step(process: subprocess.Popen[str], step: int) -> str:
    """Read a client's output up to a line of this step or a later one; returns what was read."""
    return until(process, lambda line: any(seen >= step for seen in steps(line)))


def until(process: subprocess.Popen[str], there: Callable[[str], bool]) -> str:
    read = ""
    assert process.stdout is not None
    for line in process.stdout:
        read += line
        if there(line):
            return read
    pytest.fail(f"not in {read}")


def steps(output: str) -> list[int]:
    return [int(step) for step in re.findall(r"^tiny-\w+ (\d+)/\d+ ", output, re.MULTILINE)]


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate()
    return process.returncode, output


@pytest.mark.slow
def test_a_job_leaves_what_an_embedded_run_leaves_and_a_finished_one_needs_no_cluster(root, cluster):
    embedded = {"RAY_ADDRESS": "", "RAY_AUTH_MODE": "disabled"}
    assert cluster.run("train", "tiny.yaml", "--store", "here", "--runs", "here/runs", cwd=root, **embedded)[0] == 0
    code, output = cluster.run("train", "tiny.yaml", cwd=root)
    assert code == 0, output
    assert steps(output)
    assert steps(output) == sorted(set(steps(output)))
    ours, theirs = (json.loads((root / runs / "tiny/checkpoint.json").read_text()) for runs in ("runs", "here/runs"))
    assert ours == theirs  # a pointer says nothing of where the store is
    assert cluster.jobs(ours["run"]) == {f"{ours['run']}-a1": "SUCCEEDED"}
    for name in ("metrics.json", "curve.tsv"):
        assert (root / "runs/tiny" / name).is_file()

    shutil.rmtree(root / "runs")
    code, output = cluster.run("train", "tiny.yaml", cwd=root, RAY_ADDRESS="http://127.0.0.1:1")
    assert code == 0, output
    assert json.loads((root / "runs/tiny/checkpoint.json").read_text()) == ours


@pytest.mark.slow
def test_a_job_trains_a_network_of_ones_own(root, own, cluster):
    embedded = {"RAY_ADDRESS": "", "RAY_AUTH_MODE": "disabled"}
    assert cluster.run("train", "own.yaml", "--store", "here", "--runs", "here/runs", cwd=root, **embedded)[0] == 0
    code, output = cluster.run("train", "own.yaml", cwd=root)
    assert code == 0, output
    joined = {"RAY_ADDRESS": cluster.joined}
    code, output = cluster.run("train", "own.yaml", "--store", "joined", "--runs", "joined/runs", cwd=root, **joined)
    assert code == 0, output
    pointers = [
        json.loads((root / runs / "own/checkpoint.json").read_text()) for runs in ("runs", "here/runs", "joined/runs")
    ]
    assert len({(pointer["run"], pointer["sha256"], pointer["source"]) for pointer in pointers}) == 1


@pytest.mark.slow
def test_a_second_client_attaches_and_an_interrupt_of_one_stops_the_job_for_both(root, cluster):
    first = cluster.start("train", "tiny.yaml", *LONG, cwd=root)
    until_step(first, 10)
    second = cluster.start("train", "tiny.yaml", *LONG, cwd=root)
    seen = until_step(second, 10)
    assert "attached" in seen
    first.send_signal(signal.SIGINT)
    for process in (first, second):
        code, output = finish(process)
        assert code == 130
        assert "stopped; the same command continues" in output.splitlines()[-1]
        assert "Traceback" not in output
    run = plan_run("tiny.yaml", data="data", store="store", overrides=LONG[1::2]).run
    assert cluster.jobs(run) == {f"{run}-a1": "STOPPED"}

    code, output = cluster.run("submit", "tiny.yaml", "--store", "store", *LONG, cwd=root)  # without following it
    assert code == 0
    assert output.splitlines()[-1] == f"{run}-a2"
    third = cluster.start("train", "tiny.yaml", *LONG, cwd=root)
    until_line(third, f"{run}-a2: attached")
    third.send_signal(signal.SIGTERM)
    assert finish(third)[0] == 130
    assert cluster.jobs(run) == {f"{run}-a1": "STOPPED", f"{run}-a2": "STOPPED"}


@pytest.mark.slow
def test_of_two_clients_at_once_one_submits_and_both_have_the_same_job(root, cluster):
    arguments = ("submit", "tiny.yaml", "--store", "store", *LONG, "--set", "training.seed=2")
    clients = [cluster.start(*arguments, cwd=root) for _ in range(3)]
    named = {finish(client)[1].splitlines()[-1] for client in clients}
    (name,) = named
    assert list(cluster.jobs(name[: -len("-a1")])) == [name]
    cluster.stop(name)
    wait_for(lambda: cluster.jobs(name)[name] == "STOPPED", "the job to stop")


@pytest.mark.slow
def test_a_mistake_that_only_the_job_can_see_is_one_line_here(root, cluster):
    mistake = ("--set", "data.patch=512", "--set", "training.strict=true")  # its images are smaller
    code, output = cluster.run("train", "tiny.yaml", *mistake, cwd=root)
    assert code == 1
    assert re.match("memoir: .*512", output.splitlines()[-1])
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_missing_and_a_wrong_token_are_told_and_never_shown(root, cluster):
    wrong = secrets.token_hex(32)
    for changes in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": wrong}, {"RAY_AUTH_TOKEN_PATH": "/nowhere"}):
        code, output = cluster.run("train", "tiny.yaml", cwd=root, **changes)
        assert code == 1
        (line,) = output.splitlines()
        assert line.startswith(f"memoir: {cluster.address}: ")
        assert "RAY_AUTH_MODE=token" in line
        assert wrong not in line
    code, output = cluster.run(
        "train", "tiny.yaml", cwd=root, RAY_ADDRESS=cluster.joined, RAY_AUTH_TOKEN_PATH="/nowhere"
    )
    assert code == 1
    assert re.match(f"memoir: .*{cluster.joined}.*RAY_AUTH_MODE=token", output.splitlines()[-1])
    assert "Traceback" not in output


class Proxy:
    """A TCP connection to a port, which can be cut."""

    def __init__(self, port: int) -> None:
        self.to = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open: list[socket.socket] = []
        self.away = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection, and refuse new ones while `away`."""
        for each in self.open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.open.clear()

    def _accept(self) -> None:
        while True:
            client, _ = self.listener.accept()
            if self.away:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self.to))
            self.open += [client, server]
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(a, b), daemon=True).start()

    @staticmethod
    def _copy(a: socket.socket, b: socket.socket) -> None:
        with suppress(OSError):
            while data := a.recv(65536):
                b.sendall(data)
        with suppress(OSError):
            b.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_a_network_that_breaks_costs_no_line_and_one_that_stays_away_is_told(root, cluster):
    proxy = Proxy(int(cluster.address.rpartition(":")[2]))
    client = cluster.start(
        *("train", "tiny.yaml", *LONG, "--set", "training.seed=3"),
        cwd=root,
        patch="submit.PATIENCE_SECONDS = 8; submit.LONGEST_PAUSE = 1",
        RAY_ADDRESS=f"http://127.0.0.1:{proxy.port}",
    )
    output = until_step(client, 100)
    proxy.away = True
    proxy.cut()
    time.sleep(4)
    proxy.away = False
    output += until_step(client, steps(output)[-1] + 500)
    proxy.cut()
    output += until_step(client, steps(output)[-1] + 500)
    assert steps(output) == sorted(set(steps(output)))
    assert output.count("Running entrypoint") == 1
    proxy.away = True
    proxy.cut()
    code, rest = finish(client)
    run = plan_run("tiny.yaml", data="data", store="store", overrides=[*LONG[1::2], "training.seed=3"]).run
    assert code == 1
    assert "no answer for 8 s" in rest.splitlines()[-1]
    assert f"{run}-a1 goes on" in rest.splitlines()[-1]
    assert cluster.jobs(run) == {f"{run}-a1": "RUNNING"}
    cluster.stop(f"{run}-a1")
    wait_for(lambda: cluster.jobs(run)[f"{run}-a1"] == "STOPPED", "the job to stop")


@pytest.mark.slow
def test_a_job_trains_on_a_mixture_from_and_into_a_bucket_and_is_shown_no_credentials(root, cluster, s3):
    noise = {"degradation": {"kind": "noise", "sigma": [15, 25]}}
    (root / "noisy.yaml").write_text(yaml.safe_dump(yaml.safe_load((root / "task.yaml").read_text()) | noise))
    stage.build("noisy.yaml", Path("data/manifest/manifest.json"), Path("data/noisy"))
    mixed = {key: value for key, value in RECIPE["data"].items() if key != "task"}
    mixed["mix"] = [{"task": "tiny"}, {"task": "noisy", "levels": {25: 1}}]
    (root / "tiny.yaml").write_text(
        yaml.safe_dump(RECIPE | {"data": mixed, "training": RECIPE["training"] | {"track": ["mlflow"]}})
    )
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    aws |= {"MLFLOW_TRACKING_URI": f"file:{root}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"}
    aws |= {"MLFLOW_TRACKING_PASSWORD": SECRET}
    code, output = cluster.run("train", "tiny.yaml", "--store", s3, cwd=root, **aws)
    assert code == 0, output
    (tracked,) = root.glob("mlruns/*/*/metrics/loss")
    assert [int(line.split()[2]) for line in tracked.read_text().splitlines()] == [5, 10, 15, 20]
    pointer = json.loads((root / "runs/tiny/checkpoint.json").read_text())
    assert pointer["checkpoint"].startswith("runs/")
    assert pointer["data"]["mixed_with"] == {"noisy": read_shards_json(storage("data/noisy"))["digest"]}
    assert storage(f"{s3}/{pointer['checkpoint']}").sha256("model.safetensors") == pointer["sha256"]
    assert re.search(r"([1-9]\d*) of \1 shards sent", output)

    code, output = cluster.run("submit", "tiny.yaml", "--store", s3, *LONG, cwd=root, **aws)
    assert code == 0, output
    assert " 0 of " in output
    name = output.splitlines()[-1]
    from ray.job_submission import JobSubmissionClient

    shown = str(JobSubmissionClient(cluster.address, headers=cluster.header).get_job_info(name))
    assert aws["AWS_ENDPOINT_URL"] in shown
    assert SECRET not in shown
    cluster.stop(name)
    wait_for(lambda: cluster.jobs(name)[name] == "STOPPED", "the job to stop")
