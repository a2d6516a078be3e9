"""The team's commands where something is wrong: one line says what, the exit code is 1, and nothing is left half-written."""

import hashlib
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import TINY_PARAMS, untrained_run
from projects import begin, commit, enter, git, picture

from benchmarks.faults import proxy
from jobs.publishing.publish import publish
from jobs.sharing.probe import MARK
from pipeline.dvc_objects import object_name
from pipeline.shards import build as stage
from pipeline.shards import shard_set
from pipeline.storage import storage

pytestmark = pytest.mark.usefixtures("without_ray", "one_thread")

RECIPE = """
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 2}
data: {task: photos-jpeg, patch: 24, crops: 2, batch: 4}
optimisation: {optimiser: adam, lr: 0.01, schedule: cosine, length: {steps: 2}}
training: {workers: 1}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: photos/val}]}
"""
SCORE = {
    "psnr": 28.125,
    "ssim": 0.75,
    "images": 5,
    "protocol": "p",
    "paper": {},
    "baseline": {"psnr": 27.5, "ssim": 0.7},
}
SCORES = {"photos-val/jpeg-q10": SCORE}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project at v1 and v2, DVC's remote, and a store with a model."""
    folder = tmp_path_factory.mktemp("team")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "FEW", 10**6)
        for name in ("project", "remote"):
            (folder / name).mkdir(parents=True)
        place = begin(folder / "project", "../../remote", patch)
        untrained_run(folder / "made", RECIPE, scores=SCORES, metrics={"step": 2})
        made = str(folder / "made/store")
        version = publish("tiny", made, folder / "made/runs", made)["model"]
        (folder / "version").write_text(version.removeprefix("models/"))
        shutil.copytree(folder / "made/runs", folder / "project/runs")
        with Path(".gitignore").open("a") as ignored:
            ignored.write("/runs\n/recipe\n/elsewhere\n")
        (folder / "project/recipe").mkdir()
        (folder / "project/recipe/tiny.yaml").write_text(RECIPE.replace("photos-jpeg", "tiny"))
        commit(place, "v1")
        picture(Path("photos/train/0.png"), 50)
        commit(place, "v2")
    return folder


@pytest.fixture
def team(pristine: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of the team's place in a bucket, with remote, store and shards in it; a clean checkout is where we are."""
    monkeypatch.setattr(shard_set, "CACHE", tmp_path / "copies")
    monkeypatch.setattr("jobs.training.loop.CACHE", tmp_path / "copies")
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)  # between two tries of one request
    (tmp_path / "aws").touch()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))  # DVC takes none that is no file
    shutil.copytree(pristine / "project", tmp_path / "project", symlinks=True)
    uri = f"{s3}/team"
    for name, place in (("remote", "dvc"), ("made/store", "")):
        for path in (pristine / name).rglob("*"):
            if path.is_file():
                storage(f"{uri}/{place}".rstrip("/")).write(path.relative_to(pristine / name).as_posix(), path)
    shutil.copytree(pristine / "made/store", tmp_path / "project/elsewhere")
    enter(tmp_path / "project", monkeypatch)
    config = Path(".dvc/config")
    config.write_text(config.read_text().replace("../../remote", f"{uri}/dvc") + "verify = true\n")
    params = TINY_PARAMS | {"store": uri, "shards": f"{uri}/shards", "recipes": {}, "tasks": []}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    for side in ("base", "ours", "theirs"):
        listed = json.dumps([{"md5": hashlib.md5(side.encode()).hexdigest(), "relpath": f"{side}.png"}]).encode()
        md5 = f"{hashlib.md5(listed).hexdigest()}.dir"
        storage(f"{uri}/dvc").write(object_name(md5), listed)
        Path(f"{side}.dvc").write_text(yaml.safe_dump({"outs": [{"md5": md5, "hash": "md5", "path": "photos"}]}))
    git("add", "-A")
    git("commit", "-q", "-m", "bucket")
    return uri


def commands(team: str, version: str) -> dict[str, tuple[str, ...]]:
    return {
        "share init": ("share", "init", f"{team}/other"),
        "share status": ("share", "status"),
        "share verify": ("share", "verify"),
        "store copy": ("store", "copy", "elsewhere", f"{team}/copy"),
        "store copy from": ("store", "copy", team, "there"),
        "gc": ("gc",),
        "gc --delete": ("gc", "--delete", "--older", "1h"),
        "data diff": ("data", "diff", "v1", "v2"),
        "data merge": ("data", "merge", "base.dvc", "ours.dvc", "theirs.dvc", "photos.dvc"),
        "train": ("train", "recipe/tiny.yaml", "--data", "dvc://v1"),
        "promote": ("promote", version, "stable"),
        "models": ("models",),
        "publish": ("publish", "tiny", "--store", "elsewhere", "--to", f"{team}/copy"),
        "build": ("build", "tiny.yaml"),
        "doctor": ("doctor",),
    }


def denied(self: proxy.Handler, body: bytes) -> None:
    self.give(proxy.refusal(403, "AccessDenied", "Access Denied"))


def expired(self: proxy.Handler, body: bytes) -> None:
    self.give(proxy.refusal(400, "ExpiredToken", "The provided token has expired."))


def read_only(self: proxy.Handler, body: bytes) -> None:
    changes = self.command in ("PUT", "DELETE", "POST")
    self.give(proxy.refusal(403, "AccessDenied", "Access Denied") if changes else self.upstream(body))


def unconditional(self: proxy.Handler) -> dict[str, str]:
    return {name: value for name, value in proxy.Handler.passed(self).items() if name.lower() != "if-none-match"}


FAULTS: dict[str, dict[str, object]] = {
    "no permission": {"answer": denied},
    "expired token": {"answer": expired},
    "read-only": {"answer": read_only},
    "no conditional writes": {"passed": unconditional},
}
REPORTS = ("share status", "doctor")  # whose lines on stdout say what is wrong
ALL = {  # that concern every command, with what is told
    "no permission": "access denied at",
    "wrong endpoint": "no whole answer from http://127.0.0.1:1 ",
    "expired token": "AWS_SESSION_TOKEN has expired; get a new one",
}
WRITING = ("store copy", "gc --delete", "promote", "publish", "build")
CASES: dict[str, dict[str, str]] = {name: dict(ALL) for name in commands("", "")}
CASES["share init"] = {"no permission": ALL["no permission"]}  # tests/jobs/test_share_init.py has the others
for name in WRITING:
    CASES[name]["read-only"] = "access denied at"
for name in REPORTS:
    CASES[name]["no conditional writes"] = "ignores If-None-Match"
for name in ("share verify", "gc", "train", *REPORTS):
    CASES[name]["no remote"] = "no default remote"
for name in ("data diff", "data merge"):
    CASES[name]["no remote"] = "not there"  # the cache is all that is left, and has not got it


def state(team: str) -> dict[str, bytes]:
    """All that lies in the checkout and in the bucket, but what a probe, and DVC, and git leave behind."""
    here = {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.parts[0][0] != "."}
    bucket = storage(team)
    return here | {name: bucket.read(name) for name in bucket.names() if not name.endswith(MARK)}


def spoil(fault: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the fault between this process and the tests' server."""
    endpoint = server if fault == "no remote" else "http://127.0.0.1:1"
    if fault in FAULTS:
        between = proxy.Proxy(server, "127.0.0.1", type("Handler", (proxy.Handler,), FAULTS[fault]))
        endpoint = f"http://127.0.0.1:{between.server_port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)


@pytest.mark.parametrize("command", CASES)
def test_a_bucket_that_does_not_do_is_one_line_and_nothing_is_written(
    command, team, pristine, server, monkeypatch, cli
):
    if command.startswith("data"):
        shutil.rmtree(".dvc/cache")  # what is here needs no bucket
    if command == "build":
        for folder in (".dvc/cache", ".cache", "data/tiny"):
            shutil.rmtree(folder)
    if command == "share init":
        Path(".dvc/config").write_text("[core]\nanalytics = false\n")
        Path("params.yaml").write_text(yaml.safe_dump(TINY_PARAMS))
        git("commit", "-q", "-a", "-m", "nothing is shared")
    if command == "gc --delete":
        monkeypatch.setattr("jobs.sharing.garbage.time", SimpleNamespace(time=lambda: time.time() + 10**6))
        storage(f"{team}/dvc").write(object_name("0" * 32), b"what nobody names")
    before = state(team)
    for fault, told in CASES[command].items():
        if fault == "no remote":  # the last one
            Path(".dvc/config").write_text(Path(".dvc/config").read_text().replace("remote = team\n", ""))
        with monkeypatch.context() as patch:
            spoil(fault, server, patch)
            code, out, err = cli(*commands(team, (pristine / "version").read_text())[command])
        assert code == 1, (fault, out, err)
        if command in REPORTS:
            assert err == "", fault
            assert re.search(f"FAIL  .*({told})", out), (fault, out)
            assert all(re.match("(ok  |FAIL)  ", line) for line in out.splitlines()), (fault, out)
        else:
            assert re.fullmatch(f"memoir: .*({told}).*\n", err), (fault, err)
        assert state(team) == before, fault


HALVES = [
    ("data/manifest/images/*", ("build", "tiny.yaml"), "dvc pull"),
    ("data/manifest/manifest.json", ("build", "tiny.yaml"), "memoir ingest"),
    ("data/tiny/index/*", ("inspect", "data/tiny"), "dvc pull"),
    ("data/tiny/train/*.tar", ("train", "recipe/tiny.yaml", "--set", "optimisation.length.steps=3"), "dvc pull"),
    ("runs/tiny/checkpoint.json", ("publish", "tiny"), "memoir train tiny"),
    ("runs/tiny/scores.json", ("publish", "tiny"), "memoir evaluate"),
]


@pytest.mark.parametrize(("missing", "arguments", "told"), HALVES)
def test_what_was_half_pulled_is_one_line_that_says_what_brings_it(missing, arguments, told, team, cli):
    gone = min(Path().glob(missing))
    gone.unlink()
    before = state(team)
    code, out, err = cli(*arguments)
    assert (code, out) == (1, "")
    assert re.fullmatch(f"memoir: .*{told}.*\n", err), err
    assert state(team) == before
