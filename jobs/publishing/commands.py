"""The commands of published models: publish, import, models, promote."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.console import say
from pipeline.errors import UserError
from pipeline.flags import Json

app = typer.Typer(rich_markup_mode=None)

Store = Annotated[str | None, typer.Option(help="folder or s3://bucket/prefix; that of params.yaml by default")]


@app.command()
def publish(
    recipe: Annotated[str, typer.Argument(help="an evaluated recipe")],
    to: Annotated[
        str | None, typer.Option(help="another store: a folder, file:// or s3://bucket/prefix; the same by default")
    ] = None,
    store: Annotated[str | None, typer.Option(help="where the checkpoint is; that of params.yaml by default")] = None,
    runs: Annotated[Path, typer.Option(help="folder of the stages' results")] = Path("runs"),
) -> None:
    """Put an evaluated checkpoint into the store."""
    from jobs.publishing.publish import publish
    from pipeline.params import project_store

    published = publish(recipe, to or project_store(store), runs, store)
    state = "published" if published["new"] else "already there"
    say(f"{published['uri']}: {state} ({published['sha256'][:16]})")
    if not published["latest"]:
        version = published["model"].removeprefix("models/")
        say(f"{published['uri']}: of an experiment, so not the latest; `memoir promote {version} latest` makes it so")


@app.command("import")
def import_file(
    file: Annotated[str, typer.Argument(help="a checkpoint: .safetensors, .pth, .caffemodel; a path or a URI")],
    recipe: Annotated[str, typer.Option("--as", help="the recipe whose network it is of")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="replace a value of the recipe: section.key=value")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="of the weights, as their publishers state it")] = None,
    source: Annotated[str | None, typer.Option(help="where they were published, e.g. an address")] = None,
    data: Annotated[str, typer.Option(help="of built data sets, for a recipe whose task is a file of yours")] = "data",
    store: Store = None,
) -> None:
    """Put weights that somebody else has published into the store, as a version of a recipe; runs no code of the file."""
    from jobs.publishing.foreign import import_version
    from pipeline.params import project_store

    to = project_store(store)
    done = import_version(file, recipe, to, data=data, overrides=overrides, licence=licence, source=source)
    state = f"imported, of release {done['release']}" if done["new"] else "already there"
    say(f"{done['uri']}: {state} ({done['sha256'][:16]})")
    if not done["latest"]:
        version = done["model"].removeprefix("models/")
        say(f"{done['uri']}: not the latest of its recipe; `memoir promote {version} latest` makes it so")


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="RECIPE/VERSION, as `memoir models` lists it")],
    name: Annotated[str, typer.Argument(help="e.g. stable; latest is one too")],
    why: Annotated[str | None, typer.Option(help="one line for the record")] = None,
    store: Store = None,
) -> None:
    """Give a name to a published version; `memoir restore --model STORE/models/RECIPE@NAME` then takes it."""
    from jobs.publishing.promote import promote
    from pipeline.params import project_store

    record = promote(version, name, project_store(store), why)
    before = f", before {record['before']}" if record["before"] else ""
    say(f"{version}: {name}{before}")


@app.command()
def models(
    uri: Annotated[str | None, typer.Argument(help="the store; that of params.yaml by default")] = None,
    task: Annotated[str | None, typer.Option(help="only models of this task")] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="only scores of this benchmark, e.g. jpeg-q10 or Classic5/jpeg-q10")
    ] = None,
    min_psnr: Annotated[float | None, typer.Option(help="only models with a score of at least so many dB")] = None,
    sort: Annotated[
        Literal["name", "psnr", "when"], typer.Option(help="by recipe and version; or the best, or the newest first")
    ] = "name",
    lineage: Annotated[str | None, typer.Option(help="RECIPE/VERSION: only where it comes from")] = None,
    as_json: Json = False,
) -> None:
    """What the store holds."""
    from jobs.evaluation.metrics import measured
    from jobs.publishing.publish import models
    from jobs.publishing.select import select
    from pipeline.params import project_store

    held = models(project_store(uri))
    if lineage is not None:
        held = [each for each in held if f"{each['recipe']}/{each['version']}" == lineage]
        if not held:
            raise UserError(f"{lineage}: not in the store; expected RECIPE/VERSION as `memoir models` lists them")
    held = select(held, task=task, benchmark=benchmark, min_psnr=min_psnr, sort=sort)
    if as_json:
        print(json.dumps(held, indent=1))
        return
    for version in held:
        name = f"{version['recipe']}/{version['version']}"
        if lineage is not None:
            _say_lineage(name, version)
            continue
        first = {name: (measured(score)[0], score) for name, score in version["scores"].items()}
        scores = "  ".join(f"{name} {m.text(score[m.name])} {m.unit}" for name, (m, score) in first.items())
        foreign = version["lineage"].get("imported")
        scores = "  ".join([*([f"imported from {foreign['file']}"] if foreign else []), *([scores] if scores else [])])
        say(f"{name}{''.join(f'  {label}' for label in version['names'])}  {scores}")


def _say_lineage(name: str, version: dict[str, Any]) -> None:
    for key, value in {"task": version["task"], **version["lineage"]}.items():
        if isinstance(value, dict):
            for part, held in value.items():
                say(f"{name}  {key} {part}: {'not stated' if held is None else held}")
            continue
        shown = "not recorded" if value is None and key != "parent" else "none" if value is None else value
        say(f"{name}  {key}: {shown}")
