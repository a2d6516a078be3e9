"""The whole pipeline as a newcomer runs it, on fewer steps."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the project as a git repository of its own, with one short recipe."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    root = tmp_path / "memoir"
    for name in filter(None, files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    recipe = root / "jobs/recipes/memnet-jpeg-sample.yaml"
    text = recipe.read_text()
    assert "{steps: 120}" in text
    recipe.write_text(text.replace("{steps: 120}", "{steps: 100}"))
    params = root / "params.yaml"
    lines = params.read_text().splitlines()
    kept = [line for line in lines if "-sample:" not in line or "memnet-jpeg-sample:" in line]
    params.write_text(re.sub("tasks: .*", "tasks: [photos-jpeg]", "\n".join(kept)) + "\n")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "t"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


def start(root: Path, *command: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
    }
    with (root.parent / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)


def run(root: Path, *command: str) -> str:
    log = root.parent / "log"
    log.unlink(missing_ok=True)
    code = start(root, *command).wait(timeout=500)
    assert code == 0, log.read_text()
    return log.read_text()


def test_photographs_become_a_published_model_and_a_page_and_a_kill_in_between_costs_nothing(clone):
    run(clone, "memoir", "sample")
    assert "up to date" in run(clone, "dvc", "status", "datasets.dvc")  # the samples are those that datasets.dvc names
    killed = start(clone, "dvc", "repro")
    while not any("step" in p.read_text() for p in clone.glob("store/runs/*/metrics.jsonl")):
        assert killed.poll() is None, (clone.parent / "log").read_text()
        time.sleep(0.2)
    # dvc first: as soon as its command dies it rewrites its lock file, which a kill may leave empty
    for process in [psutil.Process(killed.pid), *psutil.Process(killed.pid).children(recursive=True)]:
        process.kill()
    killed.wait()

    run(clone, "dvc", "repro")
    pointer = json.loads((clone / "runs/memnet-jpeg-sample/checkpoint.json").read_text())
    published = json.loads((clone / "runs/memnet-jpeg-sample/published.json").read_text())
    assert published["sha256"] == pointer["sha256"]
    assert (clone / "store" / published["model"] / "SHA256SUMS").exists()
    assert "memnet-jpeg-sample" in (clone / "report/index.html").read_text()
    assert list((clone / "runs/memnet-jpeg-sample/restored").glob("*.png"))
    scores = json.loads((clone / "runs/memnet-jpeg-sample/scores.json").read_text())
    protocols = json.loads((clone / "runs/memnet-jpeg-sample/protocols.json").read_text())
    assert scores["photos-test/jpeg-q10"]["psnr"] > protocols["photos-test/jpeg-q10"]["baseline"]["psnr"]

    began = time.monotonic()
    again = run(clone, "dvc", "repro")
    assert re.findall("Running stage '(.*)'", again) == ["list"]
    assert time.monotonic() - began < 60
    assert "photos-test/jpeg-q10" in run(clone, "dvc", "metrics", "show")
    run(clone, "dvc", "plots", "show", "-o", str(clone.parent / "plots"))
    assert "memnet-jpeg-sample_curve_tsv" in (clone.parent / "plots/index.html").read_text()
