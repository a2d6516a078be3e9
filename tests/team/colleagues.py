"""Two people of a team as they work: clones of one git repository, one bucket behind a proxy that counts, and their shells."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
import yaml
from conftest import photograph
from moto.server import ThreadedMotoServer

from benchmarks import versions
from pipeline.images import write_image

ROOT = Path(__file__).parents[2]
TASK = {
    "colour": "y",
    "degradation": {"kind": "jpeg", "quality": [10]},
    "splits": {"train": ["photos/train"], "val": ["photos/val"]},
    "shard_bytes": 65536,
}
RECIPE = {
    "model": {"name": "memnet", "memory_blocks": 1, "recursions": 1, "channels": 2},
    "data": {"task": "tiny", "patch": 16, "stride": 32, "batch": 8},
    "optimisation": {"optimiser": "adam", "lr": 0.001, "schedule": "cosine", "length": {"steps": 4}},
    "training": {"workers": 1},
    "evaluation": {"benchmarks": [{"benchmark": "jpeg-q10", "data": "datasets/photos/test"}]},
}
PARAMS = {
    "store": "store",
    "datasets": {"photos": {"layout": "folder", "root": "datasets/photos"}},
    "tasks": ["tiny"],
    "recipes": {"tiny": {"task": "tiny"}},
}
IMAGES = {"train": 60, "val": 2, "test": 2}
BUCKET = "team"


class Passed(NamedTuple):
    """What went through the proxy. puts: the names of what was written. up, down: bytes of bodies."""

    requests: int
    puts: list[str]
    up: int
    down: int


class Handler(versions.Handler):
    server: "Proxy"

    def answer(self, body: bytes) -> None:
        if self.command == "PUT":
            self.server.puts.append(urlsplit(self.path).path.removeprefix(f"/{BUCKET}/"))
            time.sleep(self.server.seconds)
        super().answer(body)


class Proxy(versions.Proxy):
    """The bucket's server, as the team sees it. seconds: what each object that is written takes."""

    def __init__(self, upstream: str) -> None:
        self.puts: list[str] = []
        self.seconds = 0.0
        super().__init__(upstream, Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def passed(self) -> Passed:
        """What passed since the last call."""
        with self.lock:
            found = Passed(self.requests.total(), list(self.puts), self.up, self.down)
            self.puts.clear()
        self.taken()
        return found


class Person:
    """Somebody with a clone. `run` is what he types."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root

    @property
    def environment(self) -> dict[str, str]:
        """A shell's: credentials, and no server, which the clone says itself."""
        own = ("AWS_", "RAY_", "DVC_", "GIT_")
        return {key: value for key, value in os.environ.items() if not key.startswith(own)} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),  # `memoir` hands over to the clone in which it is typed
            "DVC_NO_ANALYTICS": "1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "HOME": str(self.root.parent),  # without settings of git and AWS
        }

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Begin a command; its output is both stdout and stderr."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(
            command, cwd=self.root, env=self.environment, text=True, start_new_session=True, **pipes
        )

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """The exit code and the output of a command, which has no traceback."""
        said, _ = process.communicate(timeout=300)
        assert "Traceback" not in said, said
        return process.returncode, said

    def run(self, *command: str, rc: int = 0) -> str:
        """The output of a command, which ends with this exit code."""
        code, said = self.ended(self.start(*command))
        assert code == rc, f"{self.name}: {' '.join(command)}: {code}\n{said}"
        return said

    def repro(self, *stages: str) -> list[str]:
        """`dvc repro`; returns the stages that ran."""
        return re.findall("Running stage '(.*)'", self.run("dvc", "repro", *stages))

    def read(self, path: str) -> dict:
        """A JSON file of the clone."""
        return json.loads((self.root / path).read_text())

    def commit(self, message: str) -> None:
        """Commit what there is."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def send(self) -> None:
        """Push to both: what a commit names is in the bucket before the commit is anywhere."""
        self.run("dvc", "push", "-q")
        self.run("git", "push", "-q", "origin", "main")

    def clean(self) -> bool:
        """Whether DVC finds nothing that has changed, but for `list`, which always runs."""
        changed = json.loads(self.run("dvc", "status", "--json"))
        return changed.keys() <= {"list"} and changed.get("list", ["always changed"]) == ["always changed"]

    def photo(self, name: str, seed: int) -> Path:
        """Write a photograph; returns its path. What DVC tracks is replaced, for it is read-only."""
        path = self.root / "datasets/photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        write_image(path, photograph(seed, 56, 56))
        return path


def clone(name: str, origin: Path, root: Path) -> Person:
    """A clone of the repository, with what `make setup` does in it."""
    subprocess.run(["git", "clone", "-q", str(origin), str(root)], check=True, capture_output=True)
    person = Person(name, root)
    for key, value in (("user.name", name), ("user.email", f"{name.lower()}@example.com")):
        person.run("git", "config", key, value)
    person.run("memoir", "data", "install-merge")
    return person


def repository(place: Path) -> Path:
    """A bare repository with this working tree's code, and one small task and recipe."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    wanted = re.compile(r"(pipeline|jobs|\.dvc)/|(memoir\.py|dvc\.yaml|\.gitignore|\.dvcignore|\.gitattributes)$")
    root = place / "first"
    for name in filter(wanted.match, names):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    for name, value in (("params", PARAMS), ("pipeline/tasks/tiny", TASK), ("jobs/recipes/tiny", RECIPE)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    who = ("-c", "user.name=first", "-c", "user.email=first@example.com")
    origin = place / "memoir.git"
    for command in (
        ("init", "-q", "-b", "main"),
        ("add", "-A"),
        (*who, "commit", "-qm", "The code"),
        ("clone", "-q", "--bare", ".", str(origin)),
    ):
        subprocess.run(["git", *command], cwd=root, check=True, capture_output=True)
    return origin


@contextmanager
def bucket() -> Iterator[tuple[Proxy, Any]]:
    """A proxy that counts before an S3 server that has the bucket `team`, and a client of the server itself."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys)
    client.create_bucket(Bucket=BUCKET)
    counted = Proxy(f"http://{host}:{port}")
    try:
        yield counted, client
    finally:
        counted.shutdown()
        counted.server_close()
        server.stop()
