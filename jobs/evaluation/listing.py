"""What the stage `evaluate` looks at: a digest of each recipe's test images, so that it runs again when they change, and only then."""

from pathlib import Path
from typing import Any

from pydantic import Field

from jobs.evaluation.benchmark import benchmark
from jobs.evaluation.items import items
from jobs.recipe import BenchmarkRun, Recipe
from pipeline.config import Frozen, parse_json
from pipeline.errors import UserError
from pipeline.raw.listing import Contents, digest_of


class ListedRun(Frozen):
    """The images of one benchmark of a recipe. digest: of keys, names, parts and contents; null where there are none to score."""

    run: dict[str, Any]
    images: int = Field(ge=0)
    digest: str | None = Field(pattern=r"^[0-9a-f]{64}$")


def list_tests(recipe: Recipe, before: Path, contents: Contents) -> tuple[list[ListedRun], list[str]]:
    """The test images of a recipe's benchmarks, and lines for those that cannot be scored now.

    before: the file that this was written to the last time. A folder that is not there stays as it was listed, for this clone
    may have the scores and not the images. Raises UserError for a benchmark that does not exist.
    """
    was = {str(each.run): each for each in _read(before)}
    found, lines = [], []
    for run in recipe.evaluation.benchmarks:
        which = benchmark(run.benchmark)
        asked = run.model_dump(mode="json")
        old = was.get(str(asked))
        try:
            if old is not None and old.digest and not Path(run.data).is_dir():
                found.append(old)
                lines.append(f"{run.data}: not there; {run.benchmark} is taken as it was listed before")
                continue
            images, digest = _digest(run, contents)
        except UserError as error:
            images, digest = 0, None
            lines.append(f"{which.name} cannot be scored: {error}")
        found.append(ListedRun(run=asked, images=images, digest=digest))
    return found, lines


def _digest(run: BenchmarkRun, contents: Contents) -> tuple[int, str]:
    """The number of images of a benchmark, and the digest of their files."""
    found, _ = items(benchmark(run.benchmark), run)
    files = [(item.key, file) for item in found for file in item.files]
    marks = contents.marks(file.path for _, file in files)
    return len(found), digest_of(
        (key, file.path.relative_to(run.data).as_posix(), file.part or "", mark)
        for (key, file), (_, mark) in zip(files, marks, strict=True)
    )


def _read(path: Path) -> list[ListedRun]:
    """What an earlier `list` wrote; nothing if there is none. Raises UserError for another file."""
    try:
        return [ListedRun.model_validate(each) for each in parse_json(path.read_bytes(), str(path))]
    except FileNotFoundError:
        return []
    except (UserError, ValueError, TypeError):
        raise UserError(f"{path}: not what `memoir list` writes; remove it") from None
