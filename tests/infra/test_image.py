"""infra/Containerfile: hadolint, that what it copies and installs exists, and that it fits the pods."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "infra" / "Containerfile"


@pytest.fixture
def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments), with continued lines joined and comments left out."""
    lines = [line for line in CONTAINERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(first, rest) for line in joined.splitlines() if line for first, _, rest in [line.partition(" ")]]


@pytest.fixture
def project() -> dict[str, Any]:
    """pyproject.toml's project."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lines(instructions: list[tuple[str, str]], kind: str) -> list[str]:
    """The arguments of all instructions of a kind."""
    return [rest for each, rest in instructions if each == kind]


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert hadolint, "not installed; `make setup` does it"
    done = subprocess.run([hadolint, "--no-color", str(CONTAINERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_it_copies_exists_and_is_sent_to_the_builder(instructions):
    sent = {line[1:] for line in CONTAINERFILE.with_suffix(".dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {name for rest in lines(instructions, "COPY") for name in rest.split()[:-1]}
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)


def test_it_copies_all_that_the_package_is_made_of(instructions):
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    needed = {f"{name}.py" for name in setuptools["py-modules"]} | {
        name.rstrip("*") for name in setuptools["packages"]["find"]["include"]
    }
    assert needed <= {name for rest in lines(instructions, "COPY") for name in rest.split()[:-1]}


def test_all_that_it_installs_has_a_locked_version(instructions, project, tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (install,) = [rest for rest in lines(instructions, "RUN") if "tomllib" in rest]
    listing, _, pip = install.partition(" && ")
    subprocess.run(["bash", "-c", listing.replace("python -c", f"{sys.executable} -c")], cwd=tmp_path, check=True)
    runtime = [Requirement(line) for line in (tmp_path / "runtime.txt").read_text().splitlines()]
    assert runtime == [Requirement(each) for each in project["dependencies"]]
    assert pip == "pip install --requirement runtime.txt --constraint requirements.lock"
    pins = dict(
        line.split("==")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if re.match(r"[\w-]+==", line)
    )
    for requirement in runtime:
        assert requirement.specifier.contains(pins[requirement.name.lower()])


def test_torch_is_the_locked_one_from_the_index_that_is_named(instructions):
    (install,) = [rest for rest in lines(instructions, "RUN") if "TORCH_INDEX" in rest]
    shown = f"pip() {{ printf '%s\\n' \"$@\"; }}; {install}"
    torch = [each for each in (ROOT / "requirements.lock").read_text().splitlines() if each.startswith("torch==")]
    for index, options in (("", []), ("https://example.com/whl", ["--index-url", "https://example.com/whl"])):
        done = subprocess.run(
            ["bash", "-c", shown], env={"TORCH_INDEX": index, "PATH": "/usr/bin:/bin"}, cwd=ROOT, capture_output=True, text=True
        )  # fmt: skip
        assert done.stdout.splitlines() == ["install", *options, *torch]


def test_torch_comes_before_what_would_bring_another_build(instructions):
    runs = lines(instructions, "RUN")
    assert [i for i, rest in enumerate(runs) if "TORCH_INDEX" in rest] < [
        i for i, rest in enumerate(runs) if "runtime.txt" in rest
    ]


def test_ray_finds_its_tools(instructions):
    (packages,) = [rest for rest in lines(instructions, "RUN") if "apt-get install" in rest]
    assert {"bash", "wget", "openssh-client", "rsync"} <= set(packages.split())


def test_it_runs_as_the_user_of_the_pods_in_a_home_that_the_launcher_reads(instructions):
    manifest = yaml.safe_load((ROOT / "infra" / "kuberay" / "raycluster.yaml").read_text())
    pod = manifest["spec"]["headGroupSpec"]["template"]["spec"]
    user, group = (pod["securityContext"][key] for key in ("runAsUser", "runAsGroup"))
    assert lines(instructions, "USER") == [f"{user}:{group}"]
    *_, home = lines(instructions, "WORKDIR")
    assert f"HOME={home}" in lines(instructions, "ENV")  # of an image without it the launcher takes /root
    (made,) = [rest for rest in lines(instructions, "RUN") if "useradd" in rest]
    mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} - {"/dev/shm"}
    assert mounts <= set(made.split())
    last = [each for each, _ in instructions].index("USER")
    assert "RUN" not in [each for each, _ in instructions[last:]]


def test_it_has_the_python_that_the_project_allows(instructions, project):
    (image,) = [rest for rest in lines(instructions, "ARG") if rest.startswith("PYTHON_IMAGE=")]
    version = re.fullmatch(r"PYTHON_IMAGE=python:(\d+\.\d+)-slim-\w+", image)[1]
    assert SpecifierSet(project["requires-python"]).contains(version)


def test_the_tag_is_the_projects_version(project):
    files = [*(ROOT / "infra").rglob("*.yaml"), ROOT / "infra" / "README.md", CONTAINERFILE]
    tags = {tag for path in files for tag in re.findall(r"registry\.example\.com/memoir:(\S+)", path.read_text())}
    assert tags == {project["version"]}
