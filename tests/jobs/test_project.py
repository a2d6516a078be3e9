"""What a command finds out about the project that it runs in."""

import getpass
import subprocess
from pathlib import Path

import pytest

from jobs.project import Code, author, code, in_experiment, pointers_only


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def alone(tmp_path, monkeypatch) -> Path:
    """A folder in no repository, whose user has no settings of git's."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for variable in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(variable, "/dev/null")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def repository(alone) -> Path:
    git("init", "-q")
    Path("code.py").write_text("one")
    Path(".gitignore").write_text("ignored\n")
    git("add", ".")
    git("commit", "-qm", "first")
    git("remote", "add", "origin", "https://user:secret@example.org/us/memoir.git")
    return alone


def test_the_commit_and_the_remote_without_credentials_are_the_code(repository, capsys):
    Path("dvc.lock").write_text("what the stages rewrite")
    Path("ignored").write_text("")
    assert code() == Code("https://example.org/us/memoir.git", git("rev-parse", "HEAD"), False, None)
    assert capsys.readouterr().err == ""


def test_what_no_commit_has_is_told_by_its_digest(repository):
    digests = [code().diff]
    for name, text in (("code.py", "two"), ("new.py", "one"), ("new.py", "two"), ("other.py", "two")):
        Path(name).write_text(text)
        found = code()
        assert found.dirty
        digests.append(found.diff)
    assert len(set(digests)) == 5
    Path("other.py").unlink()
    Path("new.py").write_text("one")
    assert code().diff == digests[2]


def test_a_folder_of_a_larger_repository_is_told_and_its_own_changes_count(repository, monkeypatch, capsys):
    Path("part").mkdir()
    Path("outside.py").write_text("")
    monkeypatch.chdir("part")
    found = code()
    assert (found.commit, found.dirty) == (git("rev-parse", "HEAD"), False)
    (line,) = capsys.readouterr().err.splitlines()
    assert "a folder of the larger repository" in line
    Path("inside.py").write_text("")
    assert code().dirty


def test_outside_git_and_in_the_clone_of_another_user_one_line_says_so(alone, monkeypatch, capsys):
    assert code() == Code()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("which code this is will not be recorded: git rev-parse: not a git repository")
    git("init", "-q")
    assert code().commit is None
    assert capsys.readouterr().err.endswith("has no commit\n")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert code() == Code()
    (line,) = capsys.readouterr().err.splitlines()
    assert "dubious ownership" in line
    monkeypatch.setenv("PATH", "")
    assert code() == Code()
    assert "git: not found" in capsys.readouterr().err


def test_who_works_here_is_gits_user_or_the_login_and_never_an_error(repository, monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "login")
    assert author() == "login"
    git("config", "user.name", "Ada")
    git("config", "user.email", "ada@example.org")
    assert author() == "Ada <ada@example.org>"
    monkeypatch.setenv("PATH", "")

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert author().startswith("uid ")


def test_an_experiment_is_one_by_dvcs_variables_or_by_its_folder(tmp_path, monkeypatch):
    for variable in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    assert not in_experiment()
    for variable in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "x")
            assert in_experiment()
    (tmp_path / ".dvc/tmp/exps/a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / ".dvc/tmp/exps/a")
    assert in_experiment()


@pytest.mark.parametrize("file", ["config", "config.local"])
def test_a_folder_as_store_is_told_only_beside_a_default_remote(tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    assert pointers_only("store") is None
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")
    assert pointers_only("store") is None
    Path(".dvc", file).write_text("[core]\n    remote = team\n['remote \"team\"']\n    url = s3://bucket/a%2Fb\n")
    assert "DVC remote team" in (pointers_only("store") or "")
    assert "DVC remote team" in (pointers_only("file:///store") or "")
    assert pointers_only("s3://bucket") is None
    Path(".dvc", file).write_text("not a [config")
    assert pointers_only("store") is None
