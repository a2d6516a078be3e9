"""The file params.yaml, which lists the datasets, tasks and recipes that `dvc repro` works on."""

from pathlib import Path

from pydantic import Field

from pipeline.config import Frozen, read_yaml
from pipeline.raw.manifest import Source


class RecipeParams(Frozen):
    """What dvc.yaml must know about a recipe."""

    task: str


class Params(Frozen):
    """The file's sections."""

    store: str = Field(description="folder or s3:// URI for checkpoints and published models")
    datasets: dict[str, Source]
    tasks: tuple[str, ...]
    recipes: dict[str, RecipeParams]


def read_params(path: Path) -> Params:
    """Read params.yaml. Raises UserError with file, line and nearest key for a mistake."""
    return read_yaml(path, Params)
