"""Every command of the documentation, as a reader types it: from a fresh clone, with a bucket, page by page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from pages import PAGES, ROOT, blocks, printed

pytestmark = pytest.mark.docs

RUN = [page for page in PAGES if any(block.why_not is None for block in blocks(page))]
URL = "https://git.example.com/memoir.git"  # the repository, as the pages name it
SECONDS = 1800


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A bare repository with what this working tree has, committed or not."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    bare, work = tmp_path / "memoir.git", tmp_path / "work"
    for command in (["init", "-q", "--bare", "-b", "main", str(bare)], ["clone", "-q", str(bare), str(work)]):
        subprocess.run(["git", *command], check=True, capture_output=True)
    for name in filter(None, names):
        source, target = ROOT / name, work / name
        if source.is_file() and not source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
            target.chmod(source.stat().st_mode)
    author = ["-c", "user.name=memoir", "-c", "user.email=memoir@example.com"]
    for command in (["add", "-A"], [*author, "commit", "-qm", "memoir"], ["push", "-q", "origin", "HEAD:main"]):
        subprocess.run(["git", *command], cwd=work, check=True)
    return bare


@pytest.fixture
def environment(tmp_path: Path, repository: Path) -> dict[str, str]:
    """What a reader's shell has: a home, a name in git, and keys of a bucket `team` at a server."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        f'[user]\nname = Ann\nemail = ann@example.com\n[init]\ndefaultBranch = main\n[url "{repository}"]\ninsteadOf = {URL}\n'
        f"[core]\nexcludesFile = {home / 'ignored'}\n"
    )
    (home / "ignored").write_text(".venv\n")  # is a link here, and a folder for a reader
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_", "DVC_", "GIT_"))}
    kept.pop("PYTHONPATH", None)
    return kept | {
        "HOME": str(home),
        "DVC_NO_ANALYTICS": "1",
        "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "ENVIRONMENT": str(Path(sys.executable).parents[1]),
    }


@pytest.fixture
def bucket(environment: dict[str, str]):
    """The endpoint of a server that has the bucket."""
    import boto3

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    ).create_bucket(Bucket="team")
    yield endpoint
    server.stop()


def ready(text: str, endpoint: str) -> str:
    """The commands with this test's server in the place of the page's, and the environment that is installed already."""
    text = text.replace("https://s3.example.com", endpoint).replace("<this repository>", URL)
    # `make setup` finds what it would install: the time stamps say so. What it does to each clone is done here.
    there = 'ln -sfn "$ENVIRONMENT" .venv && touch -d 2000-01-01 requirements.lock pyproject.toml'
    return re.sub(r"^make ", f"{there} && .venv/bin/memoir data install-merge && make ", text)


@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run(page, tmp_path, environment, bucket):
    todo = [block for block in blocks(page) if block.why_not is None]
    lines = ["set -euo pipefail"]
    for block in todo:
        lines.append(f"echo '=== {page}:{block.line}'")
        for command in block.commands:
            lines.append(ready(command, bucket))
    shell = tmp_path / "shell"
    shell.mkdir()
    log = tmp_path / "log"
    with log.open("w") as out:
        done = subprocess.run(
            ["bash", "-c", "\n".join(lines)],
            cwd=shell,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
        )
    output = log.read_text()
    assert done.returncode == 0, output[-6000:]
    parts = re.split(rf"^=== {re.escape(page)}:(\d+)\n", output, flags=re.MULTILINE)
    said = dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))
    for block in todo:
        for expected in block.prints:
            assert printed(expected, said[block.line]), (
                f"{page}:{block.line}: not printed: {expected}\n{said[block.line]}"
            )
    count, left = sum(len(block.commands) for block in todo), len(blocks(page)) - len(todo)
    print(f"{page}: {count} commands run, {left} blocks not run")
