"""Clones of a repository that shares its data through a remote of DVC, made by hand: DVC itself takes seconds for each step."""

import hashlib
import json
import subprocess
from pathlib import Path

import yaml
from conftest import TINY_PARAMS

from pipeline.dvc_objects import object_name
from pipeline.storage import storage

WHO = ("-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "init.defaultBranch=main")


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


class Clone:
    """A repository with DVC's files. remote: URL of the remote `bucket`; None: none."""

    def __init__(self, root: Path, remote: str | None = None, **params: str) -> None:
        self.root, self.remote = root, remote
        (root / ".dvc").mkdir(parents=True)
        section = f"[core]\n    remote = bucket\n['remote \"bucket\"']\n    url = {remote}\n    verify = true\n"
        (root / ".dvc/config").write_text(section if remote else "")
        (root / ".dvc/.gitignore").write_text("/cache\n/tmp\n")
        (root / "params.yaml").write_text(yaml.safe_dump(TINY_PARAMS | params, sort_keys=False))
        self.git("init", "--quiet")
        self.commit("first")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *WHO, *arguments], cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, message: str = "another") -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def keep(self, data: bytes, suffix: str = "") -> str:
        """An object of the cache; returns its MD5."""
        name = md5(data) + suffix
        path = self.root / ".dvc/cache" / object_name(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return name

    def track(self, path: str, contents: bytes | dict[str, bytes]) -> str:
        """A .dvc file beside a file or a folder that only the cache has; returns the MD5."""
        if isinstance(contents, bytes):
            name, size = self.keep(contents), len(contents)
        else:
            listed = [{"md5": self.keep(data), "relpath": relative} for relative, data in sorted(contents.items())]
            name, size = self.keep(json.dumps(listed).encode(), ".dir"), sum(map(len, contents.values()))
        out = {"md5": name, "size": size, "hash": "md5", "path": Path(path).name}
        file = self.root / f"{path}.dvc"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump({"outs": [out]}))
        return name

    def lock(self, outs: dict[str, bytes]) -> None:
        """A dvc.lock of one stage with these outputs, all of them files."""
        listed = [
            {"path": path, "hash": "md5", "md5": self.keep(data), "size": len(data)} for path, data in outs.items()
        ]
        (self.root / "dvc.lock").write_text(
            yaml.safe_dump({"schema": "2.0", "stages": {"stage": {"cmd": "x", "outs": listed}}})
        )

    def push(self) -> None:
        """All that the cache has."""
        root = self.root / ".dvc/cache"
        for path in root.glob("files/md5/*/*"):
            storage(str(self.remote)).write(path.relative_to(root).as_posix(), path)
