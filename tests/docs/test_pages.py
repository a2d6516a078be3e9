"""The documentation says what is so: its reference is of this code, its errors exist, its commands parse, its links lead somewhere."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys

import pytest
import typer
from pages import PAGES, ROOT, Block, blocks, printed, unmarked

import memoir

spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert spec is not None
assert spec.loader is not None
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def test_the_reference_is_of_this_code():
    folders = ("reference", "papers")
    written = {
        f"{each}/{path.name}": path.read_text() for each in folders for path in (generate.OUT / each).glob("*.md")
    }
    made = generate.pages()
    assert written.keys() == made.keys()
    for name, text in made.items():
        assert written[name] == text, f"docs/{name} is old: run `python docs/generate.py`"


@pytest.mark.parametrize("name", sorted(name for name in generate.pages() if name != "reference/datasets.md"))
def test_each_key_has_a_meaning(name):
    lines = [line for line in (generate.OUT / name).read_text().splitlines() if line.startswith("| `")]
    assert lines
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert not [row[0] for row in cells if not row[-1].strip()]


def constants() -> str:
    """All texts in the code, each on a line of its own, with `\\0` where something is filled in."""
    found = []
    for path in [ROOT / "memoir.py", *(ROOT / "pipeline").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_the_errors_exist():
    code = constants()
    rows = re.findall(r"^\| `(.+?)` \| ", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert len(rows) > 25
    for message in rows:
        pattern = "[^\n]*".join(re.escape(part) for part in message.split("..."))
        assert re.search(pattern, code), f"no error says {message!r}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_commands_is_marked(page):
    assert not unmarked(page)
    for block in blocks(page):
        assert block.commands


def memoirs(page: str) -> list[tuple[list[str], bool]]:
    """The words of each call of memoir on a page, and whether it is in a block of commands; others are between backquotes."""
    text = (ROOT / page).read_text()
    typed = [call.strip() for block in blocks(page) for command in block.commands for call in command.split("&&")]
    calls = [(call, True) for call in typed] + [(call, False) for call in re.findall(r"`(memoir [^`\n]+)`", text)]
    found = [(call.replace("\\\n", " ").partition(" | ")[0].partition(" > ")[0], whole) for call, whole in calls]
    return [(shlex.split(call)[1:], whole) for call, whole in found if call.startswith("memoir ")]


@pytest.mark.parametrize("page", PAGES)
def test_memoirs_commands_exist(page):
    for words, whole in memoirs(page):
        command = typer.main.get_command(memoir.app)
        while hasattr(command, "commands"):
            if not words and not whole:  # prose names a group
                break
            assert words[:1], f"{command.name}: which command?"
            assert words[0] in command.commands, f"{words[0]}: not a command of {command.name}"
            command, words = command.commands[words[0]], words[1:]
        if not words or "..." in words:
            continue
        try:  # it raises for what it does not take, and runs nothing
            command.make_context(command.name, ["1" if word == "N" else word for word in words])
        except Exception as error:
            if whole or "Missing parameter" not in str(error):  # prose may leave the rest out
                raise


def test_the_links_lead_somewhere(tmp_path):
    site = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert site.returncode == 0, site.stderr
    assert (tmp_path / "site" / "infra" / "index.html").exists()


def test_a_command_is_whole_with_its_continued_lines_and_its_here_document():
    block = Block(1, "# first\na \\\n  b\ncat > x <<'E'\n# inside\n\nE\nc\n", None, ())
    assert block.commands == ["a \\\n  b", "cat > x <<'E'\n# inside\n\nE", "c"]


def test_what_is_printed_is_found():
    assert printed("a ... b", "x\na 12 b\ny")
    assert not printed("a ... b", "a 12 c")
    assert not printed("a", "ab")
