"""The commands about what this machine keeps: `memoir cache`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.console import say

cache = typer.Typer(help="What .cache holds.", no_args_is_help=True, rich_markup_mode=None)
Data = Annotated[Path, typer.Option(help="where the built datasets are")]


@cache.command()
def show(data: Data = Path("data")) -> None:
    """Built shards, and copies of what lies in buckets: how many, how large, what `prune` would remove."""
    from pipeline.raw.sources import MIRROR
    from pipeline.shards import kept
    from pipeline.shards.pruning import files, unneeded
    from pipeline.shards.shard_set import CACHE

    shards = files(kept.STORE.glob("*.tar"))
    old = files([path for path in unneeded(data) if path.suffix == ".tar"])
    say(f"{kept.STORE}: {shards.number:,} built shards, {shards.bytes:,} bytes")
    say(
        f"{kept.STORE}: {old.number:,} of no data set in {data}, {old.bytes:,} bytes; `memoir cache prune` removes them and "
        f"frees {old.freed:,} bytes"
    )
    for folder, what in ((CACHE, "copies of shards"), (MIRROR, "copies of raw images")):
        held = files(path for path in folder.rglob("*") if path.is_file())
        say(f"{folder}: {held.number:,} files, {what} from buckets, {held.bytes:,} bytes")


@cache.command()
def prune(data: Data = Path("data")) -> None:
    """Remove built shards that no data set names; a later build that needs one makes it again."""
    from pipeline.shards import kept
    from pipeline.shards.pruning import prune

    removed = prune(data)
    say(f"{kept.STORE}: {removed.number:,} shards removed, {removed.bytes:,} bytes, {removed.freed:,} of them freed")
