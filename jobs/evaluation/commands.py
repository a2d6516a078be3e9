"""`memoir list`, the stage that looks at all raw data; `memoir score` for images that anybody restored; `memoir compare`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.console import say, tell
from pipeline.flags import Json

app = typer.Typer()


def in_its_arithmetic(model: str, runs: Path, store: str | None) -> None:
    """Compute portably with a model that was trained so: its scores and pictures are then the same on every CPU."""
    from jobs.arithmetic import go_on_portably
    from jobs.restoring.checkpoint import trained_portably

    if trained_portably(model, runs, store):
        go_on_portably()


@app.command("list")
def list_data(
    params: Annotated[Path, typer.Option(help="YAML file that names datasets and recipes")] = Path("params.yaml"),
    out: Annotated[Path, typer.Option(help="folder for the listing")] = Path("data/listing"),
    runs: Annotated[Path, typer.Option(help="folder of the stages' results, made if it is missing")] = Path("runs"),
) -> None:
    """Digests of the raw data, for the stages to see that it changed."""
    from jobs.evaluation.listing import list_tests
    from jobs.recipe import read_recipe
    from pipeline.errors import UserError
    from pipeline.files import write_bytes
    from pipeline.params import read_params
    from pipeline.raw.at_hand import check_out
    from pipeline.raw.listing import Contents, list_sources

    asked, contents = read_params(params), Contents()
    recipes = {name: read_recipe(name) for name in asked.recipes}
    for name, recipe in recipes.items():
        if len(recipe.data.tasks) > 1:  # DVC would not train again when another than the first changes
            raise UserError(
                f"{params}: recipes.{name}: mixes {', '.join(recipe.data.tasks)}, and the stage train knows one task of a recipe; "
                "give it a stage of its own in dvc.yaml, see docs/training.md"
            )
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
        tell(line)
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
        tell(f"not scored: {path}: no target of this name")
    for path in found["unpaired"]["target"]:
        tell(f"not scored: {path}: no output of this name")
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


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="a model, `identity`, or a folder of restored images")],
    b: Annotated[str, typer.Argument(help="what is compared with it")],
    benchmark: Annotated[str, typer.Option(help="e.g. jpeg-q10, sr-x3, pairs-y")],
    data: Annotated[Path, typer.Option(help="folder of clean images; of pairs-..., of a published data set")],
    layout: Annotated[str | None, typer.Option(help="of a published data set: a layout's NAME or NAME:VARIANT")] = None,
    subset: Annotated[str | None, typer.Option(help="of a published data set: only this test set")] = None,
    split: Annotated[str, typer.Option(help="of a published data set: test, or val")] = "test",
    sheet: Annotated[Path, typer.Option(help="PNG to write, with B's worst and best images")] = Path("compare.png"),
    trust: Annotated[
        list[str] | None, typer.Option("--trust", help="import this network of one's own, module:Class")
    ] = None,
    store: Annotated[str | None, typer.Option(help="where models are; that of params.yaml by default")] = None,
    runs: Annotated[Path, typer.Option(help="folder of the stages' results")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Compare two models, or folders of restored images, image by image."""
    from jobs.evaluation.metrics import METRICS
    from jobs.evaluation.paired import compare, is_folder
    from jobs.recipe import BenchmarkRun

    for model in (a, b):
        if model != "identity" and not is_folder(model):
            in_its_arithmetic(model, runs, store)

    published: dict[str, Any] = {"layout": layout, "subset": subset, "split": split}
    run = BenchmarkRun(benchmark=benchmark, data=str(data), **published)
    found = compare(a, b, run, runs, sheet, trust or (), store)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    say(f"{found['dataset']}/{benchmark} ({found['images']} images, {found['protocol']})")
    say(f"A: {a}")
    say(f"B: {b}")
    say(f"  {'':<46} {'A':>9} {'B':>9} {'B - A':>18}  B is better")
    for name, row in found["metrics"].items():
        metric = METRICS[name]
        away = "" if row["difference"] is None else metric.change(row["difference"], row["margin"])
        better = f"in {row['better']}, worse in {row['worse']}" + (f", equal in {row['equal']}" * bool(row["equal"]))
        say(f"  {metric.heading:<46} {metric.text(row['a']):>9} {metric.text(row['b']):>9} {away:>18}  {better}")
    first = METRICS[next(iter(found["metrics"]))]
    for what, images in (("worst", found["each"][:3]), ("best", found["each"][::-1][:3])):
        differences = ((each["image"], each["difference"][first.name]) for each in images)
        said = (f"{key} {'infinite' if d is None else first.change(d, None)}" for key, d in differences)
        say(f"  B's {what} by {first.title}: {', '.join(said)}")
    say(f"sheet: {sheet}")
