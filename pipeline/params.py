"""The file params.yaml, which lists the datasets, tasks and recipes that `dvc repro` works on, and where the team's store is."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.checkout import below_experiments
from pipeline.config import Frozen, parse_yaml, read_limited, read_yaml
from pipeline.errors import UserError
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

    task: Name = Field(description="the one that the recipe's `data.task` names")


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
    datasets: dict[str, Source] = Field(description="raw data sets, by names of letters, digits, _ and -")
    tasks: tuple[Name, ...] = Field(description="names of files in pipeline/tasks: what is built")
    recipes: dict[Name, RecipeParams] = Field(description="names of files in jobs/recipes: what is trained")


def read_params(path: Path) -> Params:
    """Read params.yaml. Raises UserError with file, line and nearest key for a mistake."""
    return read_yaml(path, Params)


def is_of_the_past(stage: str, params: bytes | None) -> bool:
    """Whether a stage of dvc.lock is of a task or a recipe that params.yaml beside it names no more: DVC keeps its entry.

    params: the contents of that params.yaml, of any version of memoir; None, or no such file: no stage is.
    """
    _, at, item = stage.partition("@")
    try:
        found = parse_yaml(params or b"", "params.yaml")
        return bool(at) and item not in {*found["tasks"], *found["recipes"]}
    except (UserError, TypeError, KeyError):
        return False


def in_project(uri: str) -> str:
    """A store as params.yaml states it, ready to open: an URI or an absolute folder as it is, a relative one in the project.

    The project is the current directory; for an experiment that DVC runs in a copy below <project>/.dvc/tmp/exps, which is
    removed afterwards, it is that project.
    """
    if "://" in uri or Path(uri).is_absolute():
        return uri
    folder = below_experiments()
    return uri if folder is None else str(folder.parents[2] / uri)


def use_endpoint(params: Params) -> None:
    """Have S3 requests of this process and its children go to the server that params.yaml names, unless the environment does."""
    if params.endpoint and not os.environ.get(ENDPOINT):
        os.environ[ENDPOINT] = params.endpoint


def project_store(given: str | None = None) -> str:
    """The store that a command works on, ready to open: the one that is given, else that of params.yaml in the current directory.

    Raises UserError where neither says one.
    """
    if given is not None:
        return given
    if not FILE.exists():
        raise UserError(
            f"which store? There is no {FILE} in {Path.cwd()} that names one; give --store, or go to the project"
        )
    return in_project(read_params(FILE).store)


def project_shards(given: str | None = None) -> str | None:
    """The store that keeps built shards: the one that is given, else that of params.yaml in the current directory, if any."""
    if given is not None or not FILE.exists():
        return given
    shards = read_params(FILE).shards
    return None if shards is None else in_project(shards)


def use_project_endpoint() -> None:
    """`use_endpoint` for params.yaml in the current directory, if it names a server. Raises UserError for a mistake in it.

    A file without that word is not read: it may be another program's, and most commands do without.
    """
    if FILE.is_file() and re.search(rb"^endpoint\b", read_limited(FILE), re.MULTILINE):
        use_endpoint(read_params(FILE))
