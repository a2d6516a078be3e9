"""infra/README.md: its commands exist, its arithmetic is right, and no file of infra/ holds a secret."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import memoir
from jobs.recipe import read_recipe

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
RUNBOOK = (INFRA / "README.md").read_text()
FILES = [path for path in sorted(INFRA.rglob("*")) if path.is_file()]


def commands(program: str) -> list[list[str]]:
    """The words of every call of a program: in the runbook's code blocks, in comments that are set off, in backquotes."""
    text = "\n".join(path.read_text() for path in FILES)
    lines = "\n".join(re.findall(r"^```sh[^\n]*\n(.*?)^```", RUNBOOK, re.MULTILINE | re.DOTALL)).splitlines()
    lines += re.findall(r"^#   (.+)$", text, re.MULTILINE)
    calls = [call.strip() for line in lines for call in line.split("&&")]
    calls += re.findall(r"`([^`\n]+)`", text)
    return [shlex.split(call)[1:] for call in calls if call.startswith(f"{program} ")]


def resolve(command: Any, words: list[str]) -> None:
    """Raise unless these words are a command, alone as prose names it, or with options and arguments that it takes."""
    while hasattr(command, "commands"):
        assert words[:1], f"{command.name}: which command?"
        assert words[0] in command.commands, f"{words[0]}: not a command of {command.name}"
        command, words = command.commands[words[0]], words[1:]
    if words:
        command.make_context(command.name, list(words))  # raises for what it does not take, and runs nothing


def test_memoirs_commands_exist():
    found = commands("memoir")
    assert {"train", "submit", "verify", "build", "models"} <= {words[0] for words in found}
    for words in found:
        resolve(typer.main.get_command(memoir.app), words)


def test_rays_commands_exist():
    from ray.scripts.scripts import cli

    found = commands("ray")
    assert {("up",), ("down",), ("dashboard",), ("job",), ("get-auth-token",)} <= {tuple(words[:1]) for words in found}
    for words in found:
        resolve(cli, words)


def test_a_wrong_command_is_found():
    for words in (["trains", "x"], ["train", "x", "--stores", "y"], ["train", "--store", "y"], ["train", "x", "y"]):
        with pytest.raises(Exception, match=r"not a command|No such option|Missing parameter|unexpected extra"):
            resolve(typer.main.get_command(memoir.app), words)


def test_dvcs_commands_exist():
    from dvc.cli import parse_args

    found = commands("dvc")
    assert len(found) >= 4
    for words in found:
        parse_args(words)


def test_overrides_are_of_a_recipe():
    named = re.findall(r"--set (\S+=[^\s`]+)", RUNBOOK)
    assert len(named) >= 2
    read_recipe("memnet-jpeg", named)
    fields = read_recipe("memnet-jpeg").model_dump()
    for section, key in re.findall(r"`(training|data)\.(\w+)`", RUNBOOK):
        assert key in fields[section], key


def test_files_that_it_names_exist():
    for name in re.findall(r"infra/[\w./-]+\w", "\n".join(path.read_text() for path in FILES)):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"^\| `(\w+)/?` \|", RUNBOOK, re.MULTILINE)[:4]:
        assert (INFRA / name).exists(), name


def test_prefixes_of_the_bucket_are_those_of_the_policies():
    table = set(re.findall(r"^\| `(\w+/)` \| .* \| (?:builders|nodes)[^|]* \|", RUNBOOK, re.MULTILINE))
    assert table == set(re.findall(r"\.arn\}/(\w+/)\*", (INFRA / "terraform" / "access.tf").read_text()))
    days = re.search(
        r'"runs_days" \{.*?default\s+= (\d+)', (INFRA / "terraform" / "variables.tf").read_text(), re.DOTALL
    )
    assert f"`runs_days`, {days[1]} |" in RUNBOOK


def test_the_example_of_a_cost_is_right():
    rows = re.findall(r"^    (\w+)\s*= ([\d., x/+()]+?)\s+= ([\d.]+)$", RUNBOOK, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["lost", "hours", "cost"]
    for name, formula, result in rows:
        value = eval(formula.replace(",", "").replace("x", "*"))
        assert value == pytest.approx(float(result), abs=0.51 * 10 ** -len(result.partition(".")[2])), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_holds_a_secret(path):
    text = path.read_text()
    for pattern in (
        r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
        r"-----BEGIN",
        r"\b\d{12}\b",  # an account
        r"(?i)(secret|token|password|key)\w*['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{20,}",
        r"\b[0-9a-f]{40,}\b",
        r"eyJ[A-Za-z0-9_-]{10,}\.",
    ):
        assert not re.search(pattern, text), pattern
    assert "kind: Secret" not in text
