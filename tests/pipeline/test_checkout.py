"""Whose code a command runs: `memoir` in a checkout that is not the one installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# as pip writes it into an environment's bin
SCRIPT = "import sys\nfrom memoir import main\nsys.exit(main())\n"
THEIRS = "import sys\nimport jobs\nimport pipeline\n\nprint(jobs.__file__, pipeline.__file__, __file__, sys.argv[1:])\n"


@pytest.fixture
def memoir(tmp_path: Path):
    """`memoir` of an environment into which this checkout is installed, run in a folder."""
    script = tmp_path / "bin/memoir"
    script.parent.mkdir()
    script.write_text(SCRIPT)

    def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        command = [sys.executable, str(script), *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)

    return run


@pytest.fixture(params=["second", ".dvc/tmp/exps/tmpabc", "a b\x1b[2J"])
def second(request, tmp_path: Path) -> Path:
    """Another checkout, whose program says whose code it runs."""
    folder = tmp_path / request.param
    for file, text in (("memoir.py", THEIRS), ("pipeline/__init__.py", ""), ("jobs/__init__.py", "")):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return folder


@pytest.mark.parametrize("variables", [{}, {"PYTHONSAFEPATH": "1"}])
def test_the_command_runs_the_code_of_the_checkout_that_it_stands_in_and_says_so(memoir, second, variables):
    done = memoir(second, "train", "x y", "--set", "a=*", **variables)
    files = [f"{second}/{file}" for file in ("jobs/__init__.py", "pipeline/__init__.py", "memoir.py")]
    assert done.stdout == " ".join(files) + " ['train', 'x y', '--set', 'a=*']\n"
    (line,) = done.stderr.splitlines()
    assert line == f"memoir: runs the code of this directory, {second}".replace("\x1b", "\\x1b")


def test_its_exit_code_is_that_of_the_command(memoir, second):
    (second / "memoir.py").write_text("raise SystemExit(130)\n")
    assert memoir(second, "train").returncode == 130


def test_a_folder_that_is_no_whole_checkout_changes_nothing(memoir, second):
    for folder in (second / "jobs", second):
        (second / "pipeline/__init__.py").unlink(missing_ok=True)
        done = memoir(folder, "train", "nowhere")
        assert "unknown recipe 'nowhere'" in done.stderr or "which store?" in done.stderr
        assert done.stdout == ""


@pytest.mark.parametrize("command", ["script", "module"])
def test_in_the_installed_checkout_itself_nothing_is_handed_over(memoir, tmp_path, command):
    link = tmp_path / "link"
    link.symlink_to(ROOT)
    links = tmp_path / "links"  # without an end to it, if these were taken for another checkout's
    links.mkdir()
    for name in ("memoir.py", "pipeline", "jobs", "params.yaml"):
        (links / name).symlink_to(ROOT / name)
    for folder in (ROOT, link, links):
        if command == "script":
            done = memoir(folder, "train", "nowhere")
        else:
            done = subprocess.run(
                [sys.executable, "-m", "memoir", "train", "nowhere"],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=60,
            )
        (line,) = done.stderr.splitlines()
        assert line.startswith("memoir: unknown recipe 'nowhere'")


def test_a_real_second_checkout_trains_its_own_recipes(memoir, tmp_path):
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("pipeline", "jobs"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("memoir.py", "params.yaml"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "jobs/recipes/memnet-jpeg-sample.yaml").rename(copy / "jobs/recipes/only-here.yaml")
    done = memoir(copy, "train", "only-here")
    handed, line = done.stderr.splitlines()
    assert handed == f"memoir: runs the code of this directory, {copy}"
    assert "unknown recipe" not in line
    assert "shards.json" in line


WHERE = """
import jobs
from pipeline.cluster import connect
connect(1)
import ray
@ray.remote
def there():
    import jobs
    import pipeline
    return jobs.__file__, pipeline.__file__
print(jobs.__file__, *ray.get(there.remote()))
"""


@pytest.mark.slow
def test_a_worker_of_ray_runs_the_code_of_its_driver(memoir, tmp_path):
    """Of a Ray of its own, and of one that a command of another checkout started and shares."""
    copy = tmp_path / "copy"
    for name in ("pipeline", "jobs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "memoir.py", copy / "memoir.py")
    (copy / "memoir.py").write_text(WHERE)
    script = tmp_path / "bin/memoir"
    both = f"cd {ROOT}; {sys.executable} -c '{WHERE}'; cd {copy}; {sys.executable} {script}; {sys.executable} {script}"
    for command in (["with-ray", "sh", "-c", both], ["with-ray", "sh", "-c", f"cd {copy}; {sys.executable} {script}"]):
        done = memoir(ROOT, *command)
        assert done.returncode == 0, done.stderr
        *first, last = done.stdout.splitlines()
        ours, theirs = (
            f"{root}/jobs/__init__.py {root}/jobs/__init__.py {root}/pipeline/__init__.py" for root in (ROOT, copy)
        )
        assert last == theirs
        assert first in ([ours, theirs], [])
