"""A small project under git and DVC, whose data are built, pushed and committed, for tests of what a revision holds."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Workplace, photograph
from dvc.repo import Repo
from PIL import Image

DVC_YAML = {
    "stages": {
        "ingest": {"cmd": "memoir ingest", "outs": ["data/manifest"]},
        "build": {"cmd": "memoir build tiny.yaml", "outs": ["data/tiny"]},
    }
}
PHOTOS = {"train/0.png": 0, "train/1.png": 1, "train/3.png": 3, "val/9.png": 9}


def git(*arguments: str) -> str:
    """What git prints in the current directory."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def enter(root: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """Make `root` the working directory of somebody who may commit."""
    monkeypatch.chdir(root)
    for variable, value in {"NAME": "someone", "EMAIL": "some@one"}.items():
        monkeypatch.setenv(f"GIT_AUTHOR_{variable}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{variable}", value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    return Workplace(root)


def begin(root: Path, remote: str, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """`enter`, with a new git repository and DVC in it, and photographs to train on."""
    place = enter(root, monkeypatch)
    git("init", "-q", "-b", "main")
    Repo.init(".").close()
    Path(".dvc/config").write_text(f"[core]\nremote = team\nanalytics = false\n['remote \"team\"']\nurl = {remote}\n")
    Path(".gitignore").write_text("/data\n/photos\n/.cache\n")
    Path("dvc.yaml").write_text(yaml.safe_dump(DVC_YAML))
    Path("params.yaml").write_text("store: store\ndatasets: {}\ntasks: []\nrecipes: {}\n")
    for name, seed in PHOTOS.items():
        place.add(name, photograph(seed, 150, 150))
    return place


def commit(place: Workplace, tag: str, *, push: bool = True, after_build: Callable[[], None] = lambda: None) -> None:
    """Build, put what was built into DVC and its remote, and commit it under a tag. after_build: what to do in between."""
    place.ingest()
    place.build()
    after_build()
    with Repo(".") as repo:
        repo.commit(force=True)
        if push:
            repo.push()
    git("add", "-A")
    git("commit", "-q", "-m", tag)
    git("tag", tag)


def picture(path: Path, seed: int) -> None:
    """Write another photograph."""
    Image.fromarray(np.asarray(photograph(seed, 150, 150))).save(path)
