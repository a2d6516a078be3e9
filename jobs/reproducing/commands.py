"""The command `memoir reproduce`."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.publishing.commands import Store
from pipeline.console import say

app = typer.Typer(rich_markup_mode=None)


@app.command()
def reproduce(
    version: Annotated[
        str, typer.Argument(help="RECIPE/VERSION, as `memoir models` lists it, or a published version's folder or URI")
    ],
    into: Annotated[
        Path | None,
        typer.Option(help="empty folder, or that of the same before; reproduced/RECIPE-VERSION by default"),
    ] = None,
    repository: Annotated[
        str | None, typer.Option(help="URL to clone, instead of the one that the version names")
    ] = None,
    here: Annotated[
        bool, typer.Option("--here", help="in the environment that is running, not one of the commit's lock file")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust-repository", help="run its code, though it is not the origin of this clone")
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="though the training had changes that were not committed")
    ] = False,
    store: Store = None,
) -> None:
    """Train a published version anew, from what it says of itself, and compare; exit 1 if what must be equal is not."""
    from jobs.reproducing.compare import table
    from jobs.reproducing.reproduce import reproduce
    from pipeline.params import project_store

    held = store or ("" if "/models/" in version else project_store())
    done = reproduce(version, held, into=into, repository=repository, here=here, trust=trust, anyway=anyway)
    for line in table(done.rows):
        say(line)
    say(f"{version}: {done.verdict()}")
    if not done.holds:
        raise typer.Exit(1)
