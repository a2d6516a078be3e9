"""`memoir data`: how data differ between git revisions, and how they are merged."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.console import say, tell
from pipeline.errors import some
from pipeline.flags import Json

data = typer.Typer(
    help="Data over time: what changed between two git revisions, and how two people's changes become one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@data.command()
def diff(
    a: Annotated[str, typer.Argument(help="git revision: a commit, branch or tag")],
    b: Annotated[str | None, typer.Argument(help="another one; the working tree by default")] = None,
    as_json: Json = False,
) -> None:
    """Images, shards and leaks that differ between two revisions, and the bytes to move."""
    from pipeline.revisions.diff import diff

    found = diff(a, b)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for line in _lines(found):
        say(line)
    for leak in found["leaks"]:
        tell(f"new in two splits: {_leaked(leak)}")


def _lines(found: dict[str, Any]) -> list[str]:
    """What `diff` found, but for the leaks, in lines to read."""
    lines = []
    for each in found["images"]:
        parts = [
            f"{len(each[kind]):,} {kind} ({some(each[kind])})" for kind in ("added", "removed", "changed") if each[kind]
        ]
        lines.append(f"{each['dataset']}/{each['split']}: images: {', '.join(parts)}")
    for each in found["tasks"]:
        shards = each["shards"]
        counts = ", ".join(f"{number:,} {kind}" for kind, number in shards.items())
        lines.append(f"data/{each['task']}: shards: {counts}; {each['bytes']:,} bytes to move")
        if each["versions"]:
            one, other = each["versions"]
            names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
            changes = ", ".join(f"{name} {one.get(name, 'unknown')} -> {other.get(name, 'unknown')}" for name in names)
            lines.append(
                f"data/{each['task']}: built by other versions, whose bytes may differ for that alone: {changes}"
            )
        if each["absent"]:
            lines.append(
                f"data/{each['task']}: {each['absent']:,} of its shards are not here; `dvc pull data/{each['task']}`"
            )
    nbytes = found["bytes"]
    between = f"{found['a']['name']} -> {found['b']['name']}"
    if not lines and not any(nbytes.values()) and not found["leaks"]:
        return [f"{between}: the same data"]
    return [*lines, f"{between}: to move: {nbytes['shards']:,} bytes of shards, {nbytes['tables']:,} of tables"]


def _leaked(leak: dict[str, Any]) -> str:
    one, other = (f"{leak[f'path_{side}']} ({leak[f'dataset_{side}']}/{leak[f'split_{side}']})" for side in "ab")
    return f"{leak['kind']} copies {one} and {other}"


@data.command()
def merge(
    base: Annotated[Path, typer.Argument(help="the common ancestor's version: %O")],
    ours: Annotated[Path, typer.Argument(help="our version, which takes the result: %A")],
    theirs: Annotated[Path, typer.Argument(help="the other branch's version: %B")],
    name: Annotated[str, typer.Argument(help="the file's path: %P")],
) -> None:
    """What git runs to merge dvc.lock and *.dvc; see `memoir data install-merge`."""
    from pipeline.revisions.merge import merge

    merged = merge(base, ours, theirs, name)
    for note in merged.notes:
        tell(f"memoir: {note}")
    if merged.conflict:
        raise typer.Exit(1)


@data.command("install-merge")
def install_merge() -> None:
    """Have git merge dvc.lock and *.dvc by their contents, in this clone."""
    from pipeline.revisions.merge import install

    for line in install():
        say(line)
