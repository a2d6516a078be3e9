"""The images of a benchmark: which files they are, for the scores and for the stage `list`, which only looks at the files."""

from pathlib import Path
from typing import NamedTuple

from jobs.evaluation.benchmark import Benchmark, Pair
from jobs.recipe import BenchmarkRun
from pipeline.depth import Bits
from pipeline.errors import UserError
from pipeline.images import SUFFIXES, read_image, source_image
from pipeline.layouts import layout
from pipeline.layouts.files import listed, natural, safe_key, suffix_fault


class File(NamedTuple):
    """An image file. part: which image of one that holds several, as `pipeline.images.read_part` takes it."""

    path: Path
    part: str | None = None


class Item(NamedTuple):
    """What is scored as one image. key: its name in tables. files: a clean image; or an input, its target and its mask."""

    key: str
    files: tuple[File, ...]

    def pairs(self, which: Benchmark, bits: Bits) -> list[Pair]:
        """The pairs that a benchmark scores of it. Raises UnusableImageError and UserError."""
        if which.kind == "pairs":
            return [which.pair(*(source_image(path, part, bits=bits)[0] for path, part in self.files))]
        return which.prepare(read_image(self.files[0].path, bits=bits)[0])


def items(which: Benchmark, run: BenchmarkRun) -> tuple[list[Item], list[str]]:
    """The images of a run in the order of their names, and a line for each file beside them that is none.

    Nothing is opened. Raises UserError for a folder without images.
    """
    folder = Path(run.data)
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder of images")
    if which.kind == "pairs":
        return published(which, run), []
    return clean(folder) if run.layout is None else (published_clean(run), [])


def clean(folder: Path) -> tuple[list[Item], list[str]]:
    """The images of a folder, which the benchmark degrades itself, and lines for what else is in it.

    Raises UserError if there are none.
    """
    found, others = [], []
    for entry in listed(folder):
        path = folder / entry.name
        fault = "a folder" if path.is_dir() else suffix_fault(path)
        if fault:
            others.append(f"{path}: {fault}")
        else:
            found.append(Item(safe_key(path.stem), (File(path),)))
    if not found:
        raise UserError(f"{folder}: no images in it (searched: {', '.join(sorted(SUFFIXES))})")
    return found, others


def published_clean(run: BenchmarkRun) -> list[Item]:
    """The clean images of a split of a data set in its published layout, which the benchmark degrades itself.

    Raises UserError if there are none, if one is amiss, or if they are not as many as were published: a mean over others is
    no row of a table.
    """
    name, _, variant = (run.layout or "").partition(":")
    found = layout(name, "clean", Path(run.data), variant or None)
    rows = [row for row in found.rows() if row.split == run.split and row.role == "gt"]
    rows = [row for row in rows if run.subset in (None, row.scene)]
    amiss = next((row for row in rows if row.reject_reason), None)
    if amiss is not None:
        raise UserError(f"{amiss.path}: {amiss.reject_reason}")
    counts = [each.number for each in found.published() if (each.split, each.role) == (run.split, "gt")]
    wanted = sum(counts) if run.subset is None else 0
    if not rows or wanted not in (0, len(rows)):
        raise UserError(
            f"{run.data}: {len(rows)} {run.split} images in layout {run.layout}{f', {wanted} published' if wanted else ''}; "
            "complete them, or score what is there without the layout"
        )
    return [Item(row.key, (File(row.path, row.part),)) for row in sorted(rows, key=lambda row: natural(row.key))]


def published(which: Benchmark, run: BenchmarkRun) -> list[Item]:
    """The test images, or those of another split, of a data set in its published layout.

    Raises UserError if there are none, or if one is amiss.
    """
    if run.layout is None:
        raise UserError(f"{which.name}: pairs are found by their layout: --layout NAME, or layout: NAME in the recipe")
    name, _, variant = run.layout.partition(":")
    rows = [row for row in layout(name, "pairs", Path(run.data), variant or None).rows() if row.split == run.split]
    rows = [row for row in rows if run.subset in (None, row.scene)]
    amiss = next((row for row in rows if row.reject_reason), None)
    if amiss is not None:
        raise UserError(f"{amiss.path}: {amiss.reject_reason}")
    targets = {row.group: row for row in rows if row.role == "gt"}
    masks = {row.group: row for row in rows if row.role == "mask"} if which.protocol.regions else {}
    inputs = sorted((row for row in rows if row.role == "lq"), key=lambda row: natural(row.key))
    if not inputs:
        raise UserError(
            f"{run.data}: no {run.split} pairs{f' of {run.subset}' if run.subset else ''} in layout {run.layout}"
        )

    lacking = next((row for row in inputs if which.protocol.regions and row.group not in masks), None)
    if lacking is not None:
        raise UserError(
            f"{lacking.path}: no mask, and {which.name} scores the shadow by it; give a layout that has masks"
        )
    together = [[row, targets[row.group], *([masks[row.group]] if masks else [])] for row in inputs]
    return [Item(each[0].key, tuple(File(row.path, row.part) for row in each)) for each in together]
