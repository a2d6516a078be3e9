"""`memoir list`, the stage that looks at all raw data; and `memoir score`, for images that anybody restored."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.console import Json, say

app = typer.Typer()


@app.command("list")
def list_data(
    params: Annotated[Path, typer.Option(help="YAML file that names datasets and recipes")] = Path("params.yaml"),
    out: Annotated[Path, typer.Option(help="folder for the listing")] = Path("data/listing"),
    runs: Annotated[Path, typer.Option(help="folder of the stages' results, made if it is missing")] = Path("runs"),
) -> None:
    """Digests of the raw data, for the stages to see that it changed."""
    from jobs.evaluation.listing import list_tests
    from jobs.recipe import read_recipe
    from pipeline.files import write_bytes
    from pipeline.params import read_params
    from pipeline.raw.at_hand import check_out
    from pipeline.raw.listing import Contents, list_sources

    asked, contents = read_params(params), Contents()
    recipes = {name: read_recipe(name) for name in asked.recipes}
    benchmarks = [run.data for recipe in recipes.values() for run in recipe.evaluation.benchmarks]
    check_out([*(source.root for source in asked.datasets.values()), *benchmarks])
    file = out / "datasets.json"
    sources, lines = list_sources(asked.datasets, file, contents)
    tests = {}
    for name, recipe in recipes.items():
        path = out / "tests" / f"{name}.json"
        found, more = list_tests(recipe, path, contents)
        tests[path] = [each.model_dump(mode="json") for each in found]
        lines += [f"{name}: {line}" for line in more]
    for line in lines:
        say(line, problem=True)
    for name, listed in sources.items():
        say(f"{name}: {listed.files:,} files, {listed.bytes:,} bytes; digest {listed.digest[:16]}")
    values: dict[Path, Any] = {file: {name: each.model_dump(mode="json") for name, each in sources.items()}, **tests}
    for path, value in values.items():
        write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())
    for path in out.glob("tests/*.json"):
        if path not in tests:
            path.unlink()  # of a recipe that params.yaml no longer names
    contents.save()
    runs.mkdir(exist_ok=True)  # what the stage `report` depends on must exist, also where no recipe has made it


@app.command()
def score(
    output: Annotated[Path, typer.Option(help="folder of restored images")],
    target: Annotated[Path, typer.Option(help="folder of what they should be, under the same names")],
    protocol: Annotated[
        list[str] | None, typer.Option(help="e.g. rgb, y-rgb, y-matlab; all that fit the images by default")
    ] = None,
    scale: Annotated[int | None, typer.Option(min=1, help="the factor of super-resolution, for y-matlab")] = None,
    mask: Annotated[Path | None, typer.Option(help="folder of masks, for istd")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="also lpips, dists or niqe, by pyiqa")] = None,
    weights: Annotated[Path | None, typer.Option(help="folder of the files that these need")] = None,
    as_json: Json = False,
) -> None:
    """Score images that anybody restored, under the papers' protocols."""
    from jobs.evaluation.anybodys import score_images
    from jobs.evaluation.metrics import measured
    from jobs.evaluation.perceptual import perceptual

    learned = perceptual(metric or [], weights)
    found = score_images(output, target, names=protocol or [], scale=scale, mask=mask, perceptual=learned)
    for path in found["unpaired"]["output"]:
        say(f"not scored: {path}: no target of this name", problem=True)
    for path in found["unpaired"]["target"]:
        say(f"not scored: {path}: no output of this name", problem=True)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for row in found["protocols"].values():
        say(f"{output} ({found['images']} images, {row['protocol']})")
        for each in measured(row):
            say(f"  {each.heading:<46} {each.shown(row[each.name], row['margin'][each.name]):>17}")
    for name, row in found["perceptual"].items():
        say(
            f"{output} ({found['images']} images, {name} by pyiqa, {'lower' if row['lower_better'] else 'higher'} is better)"
        )
        sure = "" if row["margin"] is None else f" ± {row['margin']:.4f}"
        shown = f"{row['mean']:.4f}{sure}"
        say(f"  {name:<46} {shown:>17}")
