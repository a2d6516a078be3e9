"""`memoir suite`: a table or figure of a paper by its name."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.suites.places import Places
from pipeline.console import say
from pipeline.errors import UserError, nearest
from pipeline.flags import Json

app = typer.Typer()


@app.command()
def suite(
    name: Annotated[str | None, typer.Argument(help="e.g. memnet-table5, memnet-fig5; see --list")] = None,
    every: Annotated[bool, typer.Option("--list", help="all tables and figures, and what each lacks here")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="a recipe with a checkpoint, a published model's URI, or `identity`; those of the suite by default"
        ),
    ] = None,
    scale: Annotated[
        Literal["sample", "paper"] | None,
        typer.Option(help="train what is not trained, at this size; without it nothing is trained"),
    ] = None,
    datasets: Annotated[Path, typer.Option(help="folder of the test sets")] = Path("datasets"),
    data: Annotated[Path, typer.Option(help="where the built datasets are")] = Path("data"),
    out: Annotated[Path, typer.Option(help="folder for results, one folder for each suite")] = Path("suites"),
    timed: Annotated[bool, typer.Option("--time", help="take the models' times on this machine, too")] = False,
    trust: Annotated[list[str] | None, typer.Option(help="as for `memoir evaluate`")] = None,
    store: Annotated[str | None, typer.Option(help="that of params.yaml by default")] = None,
    runs: Annotated[Path, typer.Option(help="folder of the stages' results")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """A table or figure of one of the four papers beside ours: what is printed there, what was measured here, what lacks."""
    from jobs.evaluation.published import suites

    places = Places(datasets, data, runs, store, tuple(trust or ()), timed)
    if every or name is None:
        if name is not None:
            raise UserError("--list shows all suites: leave out the name")
        _list(places, as_json=as_json)
        return
    if name not in suites():
        raise UserError(f"no suite {name!r}; {nearest(name, list(suites()))}")
    _portable(model, scale, places)
    from jobs.suites.run import run_suite
    from jobs.suites.text import lines

    result = run_suite(name, places, model, scale, out)
    if as_json:
        typer.echo(json.dumps(result.model_dump(mode="json"), indent=1))
        return
    for line in lines(result):
        say(line)
    say(f"written: {out / name}")


def _portable(model: str | None, scale: str | None, places: Places) -> None:
    """Compute as the models were trained, where that was portably: the scores are then those of `memoir evaluate`."""
    from jobs.arithmetic import go_on_portably
    from jobs.restoring.checkpoint import trained_portably

    if scale == "sample" or (
        model not in (None, "identity") and trained_portably(str(model), places.runs, places.store)
    ):
        go_on_portably()


def _list(places: Places, *, as_json: bool) -> None:
    from jobs.suites.state import states

    found = states(places)
    if as_json:
        typer.echo(json.dumps([each._asdict() for each in found], indent=1))
        return
    for each in found:
        say(f"{each.suite:<20} {each.title}: {each.caption}")
        for line in each.lines:
            say(f"{'':<20} {line}")
