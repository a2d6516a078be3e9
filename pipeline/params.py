"""The file params.yaml, which lists the datasets, tasks and recipes that `dvc repro` works on, and where the team's store is."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.config import Frozen, read_yaml
from pipeline.raw.manifest import Source

FILE = Path("params.yaml")
ENDPOINT = "AWS_ENDPOINT_URL"


TAKEN = ("manifest", "listing")  # folders of data/ that are no task's


def _plain(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name) or name.endswith(".yaml"):
        raise ValueError("a name is of letters, digits, '_', '-' and '.', without .yaml; rename it, and its file")
    if name in TAKEN:
        raise ValueError(f"data/{name} is the place of another stage; give it another name")
    return name


Name = Annotated[str, AfterValidator(_plain)]  # of a task or a recipe: a word in a stage's command, a folder and a file


class RecipeParams(Frozen):
    """What dvc.yaml must know about a recipe."""

    task: Name


class Params(Frozen):
    """The file's sections."""

    store: str = Field(
        description="folder or s3:// URI for checkpoints and published models; see `in_project` for a relative folder"
    )
    shards: str | None = Field(
        None, description="folder or s3:// URI that keeps built shards for other machines too; null: this machine alone"
    )
    endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/@]+(/[^\s@]*)?$",
        description=f"URL of the S3 server, where it is not Amazon's; the variable {ENDPOINT} goes first",
    )
    datasets: dict[str, Source]
    tasks: tuple[Name, ...]
    recipes: dict[Name, RecipeParams]


def read_params(path: Path) -> Params:
    """Read params.yaml. Raises UserError with file, line and nearest key for a mistake."""
    return read_yaml(path, Params)


def in_project(uri: str) -> str:
    """A store as params.yaml states it, ready to open: an URI or an absolute folder as it is, a relative one in the project.

    The project is the current directory; for an experiment that DVC runs in a copy below <project>/.dvc/tmp/exps, which is
    removed afterwards, it is that project.
    """
    if "://" in uri or Path(uri).is_absolute():
        return uri
    here = Path.cwd()
    for folder in here.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return str(folder.parents[2] / uri)
    return uri


def use_endpoint(params: Params) -> None:
    """Have S3 requests of this process and its children go to the server that params.yaml names, unless the environment does."""
    if params.endpoint and not os.environ.get(ENDPOINT):
        os.environ[ENDPOINT] = params.endpoint
