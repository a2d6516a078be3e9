"""The pages of the documentation, and the commands in them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "infra/README.md",
    "benchmarks/README.md",
    *(f"docs/{path.relative_to(ROOT / 'docs').as_posix()}" for path in sorted((ROOT / "docs").rglob("*.md"))),
)
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEREDOC = re.compile(r"<<-?\s*'?(\w+)'?")


class Block(NamedTuple):
    """A block of commands. why_not: why it is not run; None if it is. prints: lines that its output has, in this order."""

    line: int
    text: str
    why_not: str | None
    prints: tuple[str, ...]

    @property
    def commands(self) -> list[str]:
        """Its commands, each with its continued lines and its here-document."""
        found: list[str] = []
        end, whole = None, True
        for line in self.text.splitlines():
            if end is not None:
                end = None if line == end else end
                found[-1] += f"\n{line}"
                continue
            if not whole:
                found[-1] += f"\n{line}"
            elif line.strip() and not line.lstrip().startswith("#"):
                found.append(line)
            else:
                continue
            whole = not line.endswith("\\")
            if here := HEREDOC.search(line):
                end = here[1]
        return found


def blocks(page: str) -> list[Block]:
    """The blocks of a page that are marked `sh`: run, unless they say `sh not run: why`.

    A block marked `text` after one of them is what it prints; `...` in it stands for anything.
    """
    text = (ROOT / page).read_text()
    found: list[Block] = []
    for fence in FENCE.finditer(text):
        kind, _, rest = fence[1].partition(" ")
        if kind == "sh":
            line = text.count("\n", 0, fence.start()) + 1
            found.append(Block(line, fence[2], rest.partition("not run: ")[2] or None, ()))
        elif kind == "text" and found:
            found[-1] = found[-1]._replace(prints=tuple(fence[2].splitlines()))
    return found


def unmarked(page: str) -> list[str]:
    """Blocks that begin with a command and are not marked `sh`."""
    programs = "memoir|dvc|git|make|ray|python|kubectl|aws|terraform|docker|helm|export|cd|pip|cat|mkdir|cp"
    text = (ROOT / page).read_text()
    return [f[2] for f in FENCE.finditer(text) if f[1] == "" and re.match(rf"\s*({programs})\b", f[2])]


def printed(expected: str, output: str) -> bool:
    """Whether some line of the output is the expected one."""
    pattern = ".*".join(re.escape(part) for part in expected.split("..."))
    return re.search(rf"^{pattern}$", output, re.MULTILINE) is not None
