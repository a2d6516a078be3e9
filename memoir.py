"""memoir: from raw photographs to evaluated checkpoints of image restoration models."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  a cluster's Python may be older than what the package was installed with
    sys.exit("memoir: needs Python 3.11 or newer, and {} is Python {}.{}".format(sys.executable, *sys.version_info))

import json
import os
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs.evaluation import commands as evaluation
from jobs.publishing.commands import Store
from jobs.publishing.commands import app as publishing
from jobs.reproducing.commands import app as reproducing
from jobs.sharing.commands import gc, share, store
from jobs.suites.commands import app as suite
from pipeline.checkout import hand_over
from pipeline.console import say, tell
from pipeline.errors import MENDABLE, UserError, some
from pipeline.flags import Json
from pipeline.revisions.commands import data as data_over_time
from pipeline.shards.commands import cache

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

app.add_typer(cache, name="cache")

ParamsFile = Annotated[Path, typer.Option("--params", help="YAML file that names datasets, tasks, recipes and store")]
Runs = Annotated[Path, typer.Option(help="folder of the stages' results")]
Data = Annotated[Path, typer.Option(help="where the built datasets are")]
TrainData = Annotated[
    str, typer.Option("--data", help="of built datasets: a folder, s3://bucket/prefix, dvc://REVISION")
]
Trust = Annotated[
    list[str] | None,
    typer.Option("--trust", help="import this network of one's own, module:Class, or all of a module or package"),
]
Precision = Annotated[
    Literal["fp32", "bf16", "auto"],
    typer.Option(
        help="of the convolutions; auto: bf16 where the device has its arithmetic, else fp32. bf16 changes the image by as much as "
        "rounding does"
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="replace a value of the recipe: section.key=value")]
From = Annotated[
    str | None,
    typer.Option(
        "--from", help="start from a model's weights: as restore --model takes it, or a file that import reads"
    ),
]
Partial = Annotated[
    bool, typer.Option("--from-partial", help="take the tensors of --from that fit, and name those that do not")
]


@app.command()
def sample(out: Annotated[Path, typer.Option(help="folder to write into")] = Path("datasets")) -> None:
    """Write the sample data sets that ship with memoir."""
    from pipeline.raw.sample import write_samples

    for each in write_samples(out):
        state = "written" if each.added else "already there"
        say(f"{out / each.name}: {each.files} files, {each.bytes:,} bytes, {state}")
    if Path(f"{out}.dvc").exists():
        # Into DVC's cache, so that `dvc status` is clean. It refuses if there is more in the folder than it names.
        subprocess.run(
            [sys.executable, "-m", "dvc", "commit", "--quiet", f"{out}.dvc"], stdin=subprocess.DEVNULL, check=False
        )


@app.command()
def ingest(
    params: ParamsFile = Path("params.yaml"),
    out: Annotated[Path, typer.Option(help="folder for the tables")] = Path("data/manifest"),
    allow_counts: Annotated[
        bool, typer.Option("--allow-counts", help="take datasets with more or fewer images than were published")
    ] = False,
    fail_on_leaks: Annotated[
        bool, typer.Option("--fail-on-leaks", help="exit 1 if an image stands in two splits")
    ] = False,
) -> None:
    """Raw folders -> the manifest of images + rejects.parquet + leaks.parquet."""
    from pipeline.params import read_params
    from pipeline.raw.manifest import ingest

    done = ingest(read_params(params).datasets, out, allow_counts=allow_counts)
    for row in done.rejects.to_pylist():
        tell(f"reject {row['path']}: {row['reject_reason']}")
    for path, warning in done.warnings:
        tell(f"warning {path}: {warning}")
    for count in done.counts:
        say(f"{count.dataset}: {count.found} found = {count.used} used + {count.rejected} rejected")
        if count.warned:
            tell(f"{count.dataset}: of the used, {count.warned} with a warning")
        if count.licence is None:
            tell(f"{count.dataset}: its licence is not known; say `licence:` beside it in params.yaml")
        for difference in count.differences:
            tell(f"{count.dataset}: accepted: {difference}")
    for leak in done.leaks.to_pylist():
        a, b = (f"{leak[f'path_{side}']} ({leak[f'dataset_{side}']}/{leak[f'split_{side}']})" for side in "ab")
        tell(f"{leak['kind']} copies in two splits: {a} and {b}")
    if fail_on_leaks and done.leaks.num_rows:
        raise UserError(f"images in two splits: {done.leaks.num_rows}; remove them from one, see {out}/leaks.parquet")


app.add_typer(evaluation.app)


@app.command()
def build(
    task: Annotated[str, typer.Argument(help="name of a file in pipeline/tasks, or a YAML file")],
    manifest: Annotated[Path, typer.Option(help="what `memoir ingest` wrote")] = Path("data/manifest/manifest.json"),
    data: Data = Path("data"),
    cpus: Annotated[int | None, typer.Option(min=1, help="shards built at a time; all CPUs by default")] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="folder or s3://bucket/prefix that keeps built shards for others too; `shards` of params.yaml"
        ),
    ] = None,
) -> None:
    """Manifest -> shards + index."""
    from pipeline.config import bare_name
    from pipeline.params import project_shards
    from pipeline.shards.build import build

    out = data / bare_name(task)
    listing = build(task, manifest, out, cpus=cpus, store=project_shards(store))
    shards, images = listing["shards"], listing["images"]
    say(
        f"{out}: {images['found']} images = {images['used']} used + {images['rejected']} not, see {out}/rejects.parquet"
    )
    for reason, (number, path) in listing["reasons"].items():
        tell(f"{out}: {number:,} not used, {reason} (the first: {path})")
    if listing["others"]:
        tell(
            f"{out}: the build that was there is of other libraries, with which the bytes may differ, so its shards were not "
            f"taken: {listing['others']}; install what requirements.lock says"
        )
    width, height = listing["smallest"]
    say(
        f"{out}: the smallest image to train on is {width}x{height}; one that is smaller than a patch is mirrored to fill it"
    )
    say(
        f"{out}: {len(shards)} shards, {sum(s['groups'] for s in shards):,} samples, "
        f"{sum(s['bytes'] for s in shards):,} bytes, {listing['encoded']} encoded now; digest {listing['digest'][:16]}"
    )


@app.command()
def verify(path: Annotated[str, typer.Argument(help="folder or s3:// URI of a built dataset")]) -> None:
    """Check every shard against its index and checksum."""
    from pipeline.dvc_objects import dataset_storage
    from pipeline.shards.format import read_shards_json, verify

    place = dataset_storage(path)
    shards = read_shards_json(place)["shards"]
    whole = True
    for problem in verify(place):
        whole = False
        tell(problem)
    if not whole:
        raise typer.Exit(1)
    say(f"{path}: {len(shards)} shards, {sum(s['bytes'] for s in shards):,} bytes: whole")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="name of a file in jobs/recipes, or a YAML file")],
    overrides: Set = None,
    data: TrainData = "data",
    store: Store = None,
    runs: Runs = Path("runs"),
    strict: Annotated[bool, typer.Option("--strict", help="short for --set training.strict=true")] = False,
    start: From = None,
    partial: Partial = False,
    run: Annotated[str | None, typer.Option(help="of a job: the run that it must be")] = None,
) -> None:
    """Train a recipe with Ray Train, here or on the cluster at RAY_ADDRESS=http://...; resumes by itself."""
    from jobs.training.start import reader
    from jobs.training.train import train
    from pipeline.params import project_store

    overrides = [*(overrides or []), *(["training.strict=true"] if strict else [])]
    store = project_store(store)
    begins = reader(start, runs, store, partial=partial)
    _say_trained(train(recipe, data=data, store=store, runs=runs, overrides=overrides, run=run, begins=begins), store)


@app.command("continue")
def go_on(
    model: Annotated[str, typer.Argument(help="what restore --model takes: a recipe, RECIPE@NAME, a version's URI")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="optimisation.length.steps=N, and learning rates, their schedule, clipping; training"
        ),
    ] = None,
    data: TrainData = "data",
    store: Store = None,
    runs: Runs = Path("runs"),
) -> None:
    """Train a finished run further, to the bit from its last checkpoint, as a run of its own; resumes by itself."""
    from jobs.training.going_on import going_on
    from jobs.training.train import train
    from pipeline.params import project_store

    store = project_store(store)
    before = going_on(model, runs, store, overrides or [])
    how: dict[str, Any] = {"overrides": before.overrides, "begins": before.begins}
    _say_trained(train(before.recipe, data=data, store=store, runs=runs, **how), store)


def _say_trained(pointer: dict[str, Any], store: str) -> None:
    if "paused" in pointer:
        say(f"{pointer['run']}: pauses at step {pointer['step']}; with another training.until the same command goes on")
        return
    say(f"{pointer['run']}: {pointer['step']} steps; {store}/{pointer['checkpoint']} ({pointer['sha256'][:16]})")


@app.command("lr-range")
def learning_rates(
    recipe: Annotated[str, typer.Argument(help="name of a file in jobs/recipes, or a YAML file")],
    lowest: Annotated[float, typer.Option(help="the rate of the first step")] = 1e-6,
    highest: Annotated[float, typer.Option(help="the rate of the last one")] = 1.0,
    steps: Annotated[int, typer.Option(min=3, help="optimiser steps")] = 100,
    overrides: Set = None,
    data: TrainData = "data",
    runs: Runs = Path("runs"),
) -> None:
    """Train a recipe's first steps in this process at rising learning rates: where the loss falls, and where it diverges."""
    _as_its_recipe_says(recipe, overrides)
    from jobs.training.lr_range import curve, lr_range, table
    from jobs.variant import reference
    from pipeline.files import write_bytes

    found = lr_range(recipe, data=data, lowest=lowest, highest=highest, steps=steps, overrides=overrides or [])
    out = runs / reference(recipe).name / "lr-range.tsv"
    write_bytes(out, curve(found).encode())
    for line in table(found):
        say(line)
    say(f"all steps: {out}")


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(help="name of a file in jobs/recipes, or a YAML file")],
    grid: Annotated[
        list[str] | None,
        typer.Option(help="values to try, section.key=value,value,...; of several keys all combinations"),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="train each with the seeds 0, 1, ...; the recipe's own by default")
    ] = None,
    halving: Annotated[
        int | None,
        typer.Option(
            min=2, help="successive halving: pause and validate, and go on with the best of so many, again and again"
        ),
    ] = None,
    overrides: Set = None,
    data: TrainData = "data",
    store: Store = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Train and evaluate a recipe with several values and seeds, and compare; the same command continues."""
    from jobs.sweep import plan, read_grid, sweep, table
    from pipeline.params import project_store

    store = project_store(store)
    if not grid and seeds is None:
        raise UserError("sweep: give --grid section.key=value,value,... or --seeds")
    points = plan(recipe, read_grid(grid or []), seeds, overrides or [], data=data, store=store)
    rows = sweep(recipe, points, data=data, store=store, runs=runs, halving=halving)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for line in table(rows):
        say(line)


@app.command()
def submit(
    recipes: Annotated[list[str] | None, typer.Argument(help="names of files in jobs/recipes, or YAML files")] = None,
    every: Annotated[bool, typer.Option("--all", help="the recipes of params.yaml")] = False,
    overrides: Set = None,
    data: TrainData = "data",
    store: Store = None,
    params: ParamsFile = Path("params.yaml"),
    start: From = None,
    partial: Partial = False,
    runs: Runs = Path("runs"),
) -> None:
    """Send recipes to the Ray cluster at RAY_ADDRESS=http://..., and leave; `memoir train` then follows its job."""
    from jobs.training.run import plan_run
    from jobs.training.start import reader
    from jobs.training.submit import client, submit
    from pipeline.params import in_project, read_params

    if every == bool(recipes):
        raise UserError("submit: name recipes, or --all for those of params.yaml")
    store = store or in_project(read_params(params).store)
    begins = reader(start, runs, store, partial=partial)
    cluster = client()
    for recipe in recipes or read_params(params).recipes:
        planned = plan_run(recipe, data=data, store=store, overrides=overrides, begins=begins)
        finished = "done.json" in planned.place.names("done.json")
        say(f"{planned.run}: finished" if finished else submit(planned, cluster))


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="folder of a built dataset")],
    sheet: Annotated[Path | None, typer.Option(help="contact sheet to write; <path's name>.png by default")] = None,
    patch: Annotated[int | None, typer.Option(min=1, help="a recipe's patch: which images are smaller")] = None,
    as_json: Json = False,
) -> None:
    """Counts, bytes and levels of a built dataset, and a contact sheet."""
    from pipeline.shards.inspect import inspect

    sheet = sheet or Path(f"{path.name}.png")
    found = inspect(path, sheet, patch)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    planes = f"{found['colour']} planes of {found['bits']} bits"
    say(f"{path}: task {found['task']}, {planes}, digest {found['digest'][:16]}")
    for name, licence in found["licences"].items():
        say(f"  {name}: licence {licence or f'not known; say `licence:` beside {name} in params.yaml'}")
    if found["orientations"]:
        say(f"  {found['orientations']}")
    for split, values in found["splits"].items():
        sizes = ", ".join(f"{name} {w}x{h}" for name, (w, h) in values["sizes"].items())
        levels = ", ".join(f"{level}: {n:,}" for level, n in values["levels"].items())
        counts = f"{values['shards']} shards, {values['samples']:,} samples, {values['bytes']:,} bytes"
        say(f"  {split}: {counts}; {sizes}; {levels}")
        if patch is not None:
            few = values["smaller"]
            say(
                f"  {split}: smaller than a patch of {patch}x{patch}: {f'{len(few):,}, {some(few)}' if few else 'none'}"
            )
    say(f"contact sheet: {sheet}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="a recipe with a checkpoint, a published model's URI, or `identity`")],
    benchmark: Annotated[
        str | None, typer.Option(help="e.g. jpeg-q10, sr-x3, noise-50; a recipe's own by default")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="folder of clean images; of pairs-..., of a published data set")
    ] = None,
    layout: Annotated[str | None, typer.Option(help="of a published data set: a layout's NAME or NAME:VARIANT")] = None,
    subset: Annotated[
        str | None, typer.Option(help="of a published data set: only this test set, e.g. Rain100L")
    ] = None,
    split: Annotated[str, typer.Option(help="of a published data set: test, or val")] = "test",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="with --benchmark: an option that changes no weights, e.g. model.predict_at=3"),
    ] = None,
    trust: Trust = None,
    store: Store = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Score a model beside the degraded input and the paper's row."""
    if model != "identity":
        evaluation.in_its_arithmetic(model, runs, store)
    from jobs.evaluation.evaluate import evaluate, evaluate_recipe
    from jobs.evaluation.metrics import table
    from jobs.recipe import BenchmarkRun

    if (benchmark is None) != (data is None):
        raise UserError("--benchmark and --data go together; without both, the benchmarks of the recipe are run")
    if settings and (benchmark is None or model == "identity"):
        raise UserError("--set goes with --benchmark and --data, and with a model")
    if benchmark is not None and data is not None:
        published: dict[str, Any] = {"layout": layout, "subset": subset, "split": split}
        run = BenchmarkRun(benchmark=benchmark, data=str(data), **published)
        row = evaluate(model, run, runs, trust or (), store, settings or ())
        scores = {f"{row['dataset']}/{benchmark}": row}
    else:
        row = scores = evaluate_recipe(model, runs, trust or (), store)
    if as_json:
        print(json.dumps(row, indent=1))
        return
    for name, score in scores.items():
        say(f"{name} ({score['images']} images, {score['protocol']})")
        for metric, before, after, paper in [("", "input", "output", "as published"), *table(score)]:
            say(f"  {metric:<46} {before:>9}  {after:>17}  {paper}".rstrip())


@app.command()
def dnd(
    model: Annotated[str, typer.Option(help="a recipe with a checkpoint, a published model's URI, or `identity`")],
    data: Annotated[Path, typer.Option(help="folder of the Darmstadt noise data set: images_srgb/*.mat, info.mat")],
    out: Annotated[Path, typer.Option(help="folder for the 50 files to submit")],
    trust: Trust = None,
    store: Store = None,
    runs: Runs = Path("runs"),
) -> None:
    """Restore the patches of DND, whose targets only its server has, and write what that takes."""
    if model != "identity":
        evaluation.in_its_arithmetic(model, runs, store)
    from jobs.evaluation.submission import HOME, submit_dnd

    files = submit_dnd(model, data, out, runs, trust or (), store)
    say(f"{out}: {len(files)} files, of 20 patches each; submit them for sRGB denoising at {HOME}")


app.add_typer(publishing)
app.add_typer(reproducing)
app.add_typer(suite)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="a degraded image, or a folder of them")],
    target: Annotated[Path, typer.Argument(help="where the restored one goes")],
    model: Annotated[
        str,
        typer.Option(
            help="a recipe with a checkpoint, a published.json, or a published model's URI; URI@NAME; memnet-jpeg-cpu comes "
            "with memoir"
        ),
    ],
    scale: Annotated[int | None, typer.Option(min=2, max=8, help="enlarge first, for super-resolution models")] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="never in blended tiles, whatever memory a large image needs")
    ] = False,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="of a JPEG that is written; 95")] = None,
    subsampling: Annotated[str | None, typer.Option(help="of its colours: 4:4:4 (the default), 4:2:2 or 4:2:0")] = None,
    precision: Precision = "fp32",
    trust: Trust = None,
    store: Store = None,
    runs: Runs = Path("runs"),
) -> None:
    """Restore files or folders, of any size."""
    _as_asked(precision, model, runs, store)
    from jobs.restoring.restore import restore
    from jobs.restoring.tiles import OVERLAP, TILE, WHOLE

    how: dict[str, Any] = {"scale": scale, "whole": whole, "quality": quality, "subsampling": subsampling}
    how |= {"precision": precision, "trust": trust or (), "store": store}
    done, failed, blended = 0, 0, 0
    for each in restore(model, source, target, runs, **how):
        if each.problem is not None:
            tell(f"not restored: {each.source}: {each.problem}")
        for warning in each.warnings:
            tell(f"warning {each.source}: {warning}")
        done, failed, blended = (
            done + (each.problem is None),
            failed + (each.problem is not None),
            blended + each.blended,
        )
    if blended:
        tell(
            f"{target}: {blended} of more than {WHOLE:,} pixels in tiles of {TILE} that pass into each other over {OVERLAP}; "
            "the model's card says how near that is to --whole"
        )
    if failed:
        tell(f"{target}: {done + failed} found = {done} restored + {failed} not")
        raise typer.Exit(1)


@app.command()
def report(
    recipes: Annotated[list[str] | None, typer.Argument(help="or variants; those of params.yaml by default")] = None,
    params: ParamsFile = Path("params.yaml"),
    runs: Runs = Path("runs"),
    out: Annotated[Path, typer.Option(help="folder for the page")] = Path("report"),
    suites: Annotated[Path, typer.Option(help="folder of the results of `memoir suite`")] = Path("suites"),
) -> None:
    """The page: the papers' tables and figures that were run, and scores, curves and pictures of every recipe."""
    from jobs.report import write_report
    from pipeline.params import read_params

    say(str(write_report(recipes or list(read_params(params).recipes), runs, out, suites)))


@app.command()
def doctor(params: ParamsFile = Path("params.yaml")) -> None:
    """Check the installation, the data, the store and the cluster."""
    from jobs.doctor import examine

    healthy = True
    for finding in examine(params):
        say(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}: {finding.detail}")
        healthy &= finding.ok
    if not healthy:
        raise typer.Exit(1)


@app.command("with-ray", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def with_ray(context: typer.Context, command: Annotated[list[str], typer.Argument(help="and its arguments")]) -> None:
    """Run a command, such as `dvc repro`, whose stages share one embedded Ray instead of starting one each."""
    from pipeline.shared_ray import run_with_ray

    def start(cpus: int) -> str:
        from pipeline.cluster import connect

        connect(cpus)
        import ray

        return str(ray.get_runtime_context().gcs_address)

    raise typer.Exit(run_with_ray([*command, *context.args], start))


app.add_typer(share, name="share")
app.add_typer(store, name="store")
app.command()(gc)
app.add_typer(data_over_time, name="data")

bench = typer.Typer(help="Measure memoir on this machine.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")


@bench.command()
def load(
    shards: Annotated[Path, typer.Argument(help="folder of a built dataset")],
    split: Annotated[str, typer.Option(help="train, val or test")] = "train",
    patch: Annotated[int, typer.Option(min=1, help="side of the patches in pixels")] = 256,
    stride: Annotated[int | None, typer.Option(min=1, help="take the patches at every so many pixels")] = None,
    crops: Annotated[int | None, typer.Option(min=1, help="or so many at random places of each image; 1")] = None,
    dihedral: Annotated[bool, typer.Option("--dihedral/--no-dihedral", help="flips and rotations too")] = True,
    batch: Annotated[int, typer.Option(min=1, help="samples in a batch")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="that cut batches ahead")] = 1,
    seconds: Annotated[float, typer.Option(min=0.01, help="for each of the two runs")] = 5,
    step_ms: Annotated[float, typer.Option(min=0, help="what a device takes for a batch, for the stall")] = 5,
    strict: Annotated[bool, typer.Option("--strict", help="images smaller than a patch are an error")] = False,
    as_json: Json = False,
) -> None:
    """Samples and bytes per second of the loader, beside memcpy, and how long a device would wait for it."""
    from pipeline.loading.bench import bench_load
    from pipeline.sampling.patches import Grid, RandomCrops

    if stride is not None and crops is not None:
        raise UserError("--stride and --crops: give one; patches are at every so many pixels, or at random places")
    sampling = Grid(patch, stride, dihedral) if stride is not None else RandomCrops(patch, crops or 1, dihedral)
    how: dict[str, Any] = {"batch": batch, "threads": threads, "seconds": seconds, "step_ms": step_ms, "strict": strict}
    done = bench_load(shards, split, sampling=sampling, **how)
    for phrase in done["notes"]:
        tell(f"{shards}: {phrase}")
    if as_json:
        print(json.dumps(done, indent=1))
        return
    mb, limit = done["bytes_per_second"] / 1e6, done["memcpy_bytes_per_second"] / 1e6
    say(
        f"{shards}: {done['samples_per_second']:,.0f} samples/s, {mb:,.1f} MB/s; {done['samples']:,} samples in "
        f"{done['seconds']:.2f} s, {done['cpu_seconds']:.2f} s of CPU"
    )
    say(f"{shards}: {done['share_of_memcpy']:.1%} of memcpy, which does {limit:,.1f} MB/s in one thread")
    say(f"{shards}: a device that takes {step_ms:g} ms for a batch of {batch} waits {done['stall']:.1%} of the time")


@bench.command()
def step(
    recipe: Annotated[str, typer.Argument(help="name of a file in jobs/recipes, or a YAML file")],
    overrides: Set = None,
    data: TrainData = "data",
    seconds: Annotated[float, typer.Option(min=0.1, help="for all of it, about")] = 20,
    as_json: Json = False,
) -> None:
    """Where the time of a recipe's step goes: samples/s, waiting for data and for other workers, convolutions; what to change first."""
    _as_its_recipe_says(recipe, overrides)
    from jobs.training.bench import bench_step, told

    found = bench_step(recipe, data=data, seconds=seconds, overrides=overrides or [])
    if as_json:
        print(json.dumps(found._asdict(), indent=1))
        return
    for line in told(found):
        say(f"{recipe}: {line}")


@bench.command("restore")
def bench_of_restore(
    source: Annotated[Path, typer.Argument(help="a folder of images")],
    model: Annotated[str, typer.Option(help="as restore --model takes it")],
    seconds: Annotated[float, typer.Option(min=0.1, help="about, for the files")] = 20,
    precision: Precision = "fp32",
    trust: Trust = None,
    store: Store = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Megapixels/s of a model from file to file, on every CPU, beside what its convolutions alone would allow."""
    _as_asked(precision, model, runs, store)
    from jobs.restoring.bench import bench_restore, told

    found = bench_restore(model, source, runs, seconds=seconds, precision=precision, trust=trust or (), store=store)
    if as_json:
        print(json.dumps(found._asdict(), indent=1))
        return
    for line in told(found):
        say(f"{source}: {line}")


def _as_asked(precision: str, model: str, runs: Path, store: str | None) -> None:
    """Compute in fp32 as the model was trained; say what bf16 costs where it is slower."""
    if precision == "fp32":
        evaluation.in_its_arithmetic(model, runs, store)
    elif precision == "bf16":
        import torch

        from jobs.arithmetic import COST, native_bf16

        if not (torch.cuda.is_available() or native_bf16(torch.device("cpu"))):
            tell(COST.replace("precision: auto", "--precision auto"))


def _as_its_recipe_says(recipe: str, overrides: list[str] | None) -> None:
    """Compute portably in this process if the recipe does."""
    from jobs.arithmetic import go_on_portably
    from jobs.recipe import read_recipe

    if read_recipe(recipe, overrides or []).training.portable:
        go_on_portably()


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 1."""
    hand_over(sys.argv[1:])
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        from pipeline.params import use_project_endpoint

        use_project_endpoint()
        app()
    except UserError as error:
        tell(f"memoir: {error}")
        sys.exit(getattr(error, "exit_code", 1))  # a failed job on a cluster has an exit code of its own
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        tell(f"memoir: {where}{error.strerror}")
        sys.exit(1)


if __name__ == "__main__":
    main()
