"""The report: one static page of what every recipe reached, for people who train these models."""

import csv
import math
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import TypeAdapter

from jobs.documents import Pointer, Published, read_document
from jobs.evaluation.metrics import METRICS, Metric, measured
from jobs.evaluation.published import suites as published_suites
from jobs.evaluation.scores import AllScores, Figures, Scores, read_scores
from jobs.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, chart
from jobs.report.results import Result, ResultRow, grouped, read_results
from pipeline.errors import UserError
from pipeline.files import write_bytes

GENERATOR = '<meta name="generator" content="memoir">'  # in the page: a folder without it is not replaced
ROLES = ("input", "output", "target")
TITLES = {
    "memnet": "MemNet (ICCV 2017)",
    "memorynet": "MemoryNet: memory augment is all you need",
    "timelapse": "Time-lapse deraining (TIP 2022)",
    "drcnet": "DRCNet (ECCV 2022)",
}

IMAGES = 10**6  # the most that a table of scores has


@dataclass(frozen=True)
class Picture:
    """A picture of the report: its place relative to the page, and its size in pixels."""

    src: str
    name: str
    width: int
    height: int


@dataclass(frozen=True)
class Comparison:
    """One scored image with its pictures, by role."""

    image: str
    baseline: Figures
    ours: Figures
    pictures: dict[str, Picture]


@dataclass(frozen=True)
class Row:
    """One row of the summary, and the images shown of it."""

    dataset: str
    benchmark: str
    metrics: list[Metric]
    scores: Scores
    comparisons: list[Comparison]


@dataclass(frozen=True)
class Shown:
    """A suite's result on the page. tables: of each grid its title, headings and lines of cells; pictures and data: its files."""

    result: Result
    tables: list[tuple[str, list[tuple[str, list[str]]], list[ResultRow]]]
    pictures: list[Picture]
    data: list[Picture]


@dataclass(frozen=True)
class Paper:
    """What the page has of one paper: results of its suites, and its recipes."""

    name: str
    title: str
    suites: list[Shown]
    sections: list["Section"]


@dataclass(frozen=True)
class Section:
    """What the page says of one recipe."""

    recipe: str
    checkpoint: Pointer
    published: Published
    charts: list[Chart]
    rows: list[Row]
    memory: list[Picture]  # a sheet of each bank: what its items respond to
    restored: list[Picture]


def write_report(recipes: list[str], runs: Path, out: Path, suites: Path = Path("suites")) -> Path:
    """Write the page out/index.html, with copies of its pictures below `out`; returns its path.

    recipes: in the order of the page, by paper; runs/<recipe> holds what their stages wrote. suites: the results of
    `memoir suite`, if there are any. The bytes depend on those files alone.
    The folder appears as a whole, in the place of an older report.
    Raises UserError for a file that is missing, damaged or of another checkpoint, with the stage that makes it, and for a
    folder `out` that is not a report.
    """
    target = out.resolve()
    page = target / "index.html"
    if (
        target.exists()
        and any(target.iterdir())
        and not (page.exists() and GENERATOR in page.read_text("utf-8", "replace"))
    ):
        raise UserError(f"{out}: holds other files than a report, which would be lost; name another folder")
    partial, old = target.with_name(f".{target.name}.tmp"), target.with_name(f".{target.name}.old")
    for left in (partial, old):  # by a killed run
        shutil.rmtree(left, ignore_errors=True)
    try:
        sections = [_section(recipe, runs / recipe, partial) for recipe in recipes]
        shown = [_shown(result, suites / result.suite, partial) for result in read_results(suites)]
        write_bytes(partial / "index.html", _page(_papers(sections, shown)).encode())
        if target.exists():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out / "index.html"


def _papers(sections: list[Section], shown: list[Shown]) -> list[Paper]:
    """The page by paper, in the order of PAPERS; recipes of networks of one's own last."""
    order = {name: i for i, name in enumerate(published_suites())}
    shown = sorted(shown, key=lambda each: order.get(each.result.suite, len(order)))
    papers = [
        Paper(
            name,
            title,
            [each for each in shown if each.result.paper == name],
            [section for section in sections if _paper_of(section) == name],
        )
        for name, title in TITLES.items()
    ]
    others = [section for section in sections if _paper_of(section) not in TITLES]
    return [
        *(each for each in papers if each.suites or each.sections),
        *([Paper("", "Other networks", [], others)] if others else []),
    ]


def _paper_of(section: Section) -> str:
    """The paper of a recipe, by its name: they begin with the paper's."""
    return section.recipe.partition("-")[0]


def _shown(result: Result, folder: Path, out: Path) -> Shown:
    """A suite's result, with copies of its files."""
    place = PurePosixPath("suites", result.suite)
    tables = [(grid.title, grouped(grid.columns), grid.rows) for grid in result.grids]
    files = [(name, _file(folder / name, out, place / name)) for name in result.files]
    pictures = [file for name, file in files if name.endswith((".png", ".svg"))]
    return Shown(result, tables, pictures, [file for name, file in files if not name.endswith((".png", ".svg"))])


def _file(source: Path, out: Path, place: PurePosixPath) -> Picture:
    """Copy a file of a suite to out/place; sizes of plots are their own."""
    if source.suffix == ".png":
        return _copy(source, out, place)
    target = out / place
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return Picture(place.as_posix(), place.name, 560, 320)


def _page(papers: list[Paper]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"figure": _figure, "signed": _signed}
    plot = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    sections = [section for paper in papers for section in paper.sections]
    protocols = sorted({row.scores.protocol for section in sections for row in section.rows})
    template = environment.get_template("page.html")
    return template.render(papers=papers, sections=sections, plot=plot, protocols=protocols, generator=GENERATOR)


def _figure(value: float | None, metric: Metric) -> str:
    return "∞" if value is None else metric.text(value)


def _signed(pair: tuple[float | None, float | None], digits: int) -> str:
    """The second value minus the first, with its sign; None stands for infinity."""
    before, after = (math.inf if value is None else value for value in pair)
    if math.isinf(before) or math.isinf(after):
        return "0" if before == after else "+∞" if after > before else "−∞"
    return f"{after - before:+.{digits}f}".replace("-", "−")


# reading what the stages wrote

Model = TypeVar("Model")


def _read(path: Path, kind: type[Model], stage: str) -> Model:
    """A JSON file of a stage, checked."""
    try:
        value = read_document(path.read_bytes(), kind, str(path), f"make it again: {_command(path, stage)}")
        return TypeAdapter(kind).validate_python(value)
    except FileNotFoundError:
        raise _missing(path, stage) from None


def _missing(path: Path, stage: str) -> UserError:
    return UserError(f"{path}: not found; the stage {stage} makes it: `dvc repro {stage}@{path.parent.name}`")


def _damaged(path: Path, stage: str, what: str) -> UserError:
    return UserError(f"{path}: {what}; make it again: {_command(path, stage)}")


def _command(path: Path, stage: str) -> str:
    return f"`dvc repro -f -s {stage}@{path.parent.name}`"


def _section(recipe: str, run: Path, out: Path) -> Section:
    checkpoint = _read(run / "checkpoint.json", Pointer, "train")
    try:
        held = read_scores(run, f"make it again: {_command(run / 'scores.json', 'evaluate')}")
    except FileNotFoundError as error:
        raise _missing(Path(error.filename), "evaluate") from None
    scores = TypeAdapter(AllScores).validate_python(held)
    published = _read(run / "published.json", Published, "publish")
    if published.sha256 != checkpoint.sha256:
        raise _damaged(run / "published.json", "publish", "is of other weights than checkpoint.json")
    comparisons = _comparisons(run, scores, out, PurePosixPath("pictures", recipe))
    rows = []
    for name, row in scores.items():
        dataset, benchmark = name.rsplit("/", 1)
        rows.append(Row(dataset, benchmark, measured(row.figures), row, comparisons[name]))
    memory = _folder(run / "pictures" / "memory", out, PurePosixPath("memory", recipe))
    restored = _folder(run / "restored", out, PurePosixPath("restored", recipe))
    return Section(recipe, checkpoint, published, _charts(run / "curve.tsv"), rows, memory, restored)


def _comparisons(run: Path, scores: dict[str, Scores], out: Path, place: PurePosixPath) -> dict[str, list[Comparison]]:
    """The images that have pictures, by row of scores.json; the pictures are copied to out/place."""
    table = run / "scores.parquet"
    try:
        with pq.ParquetFile(table) as file:
            if file.metadata.num_rows > IMAGES:
                raise _damaged(table, "evaluate", f"has {file.metadata.num_rows:,} rows; up to {IMAGES:,} are read")
            images = file.read().to_pylist()
    except FileNotFoundError:
        raise _missing(table, "evaluate") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        raise _damaged(table, "evaluate", "not readable as Parquet") from None
    for image in images:
        names = [image.get(column) for column in ("dataset", "benchmark", "image")]
        if any(not isinstance(name, str) or "/" in name or "\0" in name for name in names):
            raise _damaged(table, "evaluate", f"names an image {names}")
    if not (run / "pictures").is_dir():
        raise _missing(run / "pictures", "evaluate")
    found: dict[str, list[Comparison]] = {name: [] for name in scores}
    for image in images:
        name = f"{image['dataset']}/{image['benchmark']}"
        if name not in found:
            raise _damaged(table, "evaluate", f"scores {name}, which scores.json lacks")
        file = f"{image['dataset']}-{image['benchmark']}-{image['image']}.png"
        if not (run / "pictures" / "input" / file).exists():
            continue
        pictures = {}
        for role in ROLES:
            source = run / "pictures" / role / file
            if not source.exists():
                raise _damaged(run / "pictures", "evaluate", f"holds no {role}/{file}")
            pictures[role] = _copy(source, out, place / role / file)
        before, after = _figures(image, "baseline_"), _figures(image, "")
        if not before.keys() == after.keys() == scores[name].figures.keys():
            raise _damaged(table, "evaluate", f"has other metrics of {name} than scores.json")
        found[name].append(Comparison(image["image"], before, after, pictures))
    return found


def _figures(image: dict[str, Any], prefix: str) -> Figures:
    """The metrics of an image, from the columns with this prefix in its row of scores.parquet."""
    values = {name: image.get(f"{prefix}{name}") for name in METRICS}
    return {name: value if math.isfinite(value) else None for name, value in values.items() if value is not None}


def _folder(folder: Path, out: Path, place: PurePosixPath) -> list[Picture]:
    """The PNG files that a stage left in a folder, if it made one."""
    return [_copy(path, out, place / path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*.png"))]


def _copy(source: Path, out: Path, place: PurePosixPath) -> Picture:
    """Copy a picture to out/place."""
    target = out / place
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    try:
        with Image.open(target) as image:
            width, height = image.size
    except OSError:
        raise UserError(f"{source}: not a picture; run the stage that makes it again") from None
    return Picture(place.as_posix(), place.name, width, height)


# charts


def _charts(path: Path) -> list[Chart]:
    """Loss and PSNR over the steps."""
    names = ("loss", "psnr", "val_psnr")
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    try:
        with path.open(newline="") as file:
            table = csv.DictReader(file, delimiter="\t")
            if not {"step", *names} <= set(table.fieldnames or ()):
                raise KeyError
            for row in table:
                for name in names:
                    if row[name]:
                        points[name].append((int(row["step"]), float(row[name])))
    except FileNotFoundError:
        raise _missing(path, "train") from None
    except (KeyError, ValueError, TypeError):
        raise _damaged(path, "train", "not a table of step, loss, psnr and val_psnr") from None
    loss = {"training batches": points["loss"]}
    psnr = {"training batches": points["psnr"], "validation images": points["val_psnr"]}
    return [chart("Loss", "log scale", loss, logarithmic=True), chart("PSNR", "dB", psnr)]
