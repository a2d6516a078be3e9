"""The small files of runs and stores, and the checks that they must pass before they are used.

They come from a store or a remote: each is checked here once, when it is read. Keys that a later version of memoir may add
are ignored; those that this version uses are checked for kind and range, and no name leads out of its folder.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pipeline.config import parse_json
from pipeline.errors import UserError

SMALL = 2**26  # bytes of such a file, at most
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")  # a file of a version or a checkpoint

NAME = r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,199}"  # of one folder or file
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
VersionName = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Step = Annotated[int, Field(ge=0, lt=10**8)]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,1000}$")]
Name = Annotated[str, Field(pattern=rf"^{NAME}$")]
CheckpointName = Annotated[str, Field(pattern=rf"^runs/{NAME}/step-[0-9]{{8}}$")]
ModelName = Annotated[str, Field(pattern=rf"^models/{NAME}/[0-9a-f]{{12}}$")]
Time = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]  # in UTC
Licences = dict[Line, Line | None]  # of data, by dataset; None where it is not known
Overrides = list[Annotated[str, Field(max_length=2**17)]]  # `section.key=value`
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")]


class Document(BaseModel):
    """The base class of the documents below."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class OfStore(Document):
    """A document that names something in the store, by its path there: older ones had a URI."""

    @model_validator(mode="before")
    @classmethod
    def _present(cls, value: Any) -> Any:
        if isinstance(value, dict) and "uri" in value and not value.keys() & {"checkpoint", "model"}:
            raise UserError("of an older version of memoir")
        return value


class Trained(Document):
    """What checkpoint.json says of the training data, beside the keys of pipeline.task.Task.

    mixed_with: the digests of the other tasks of a mixture, by task.
    """

    task: Name
    digest: Line
    mixed_with: dict[Name, Line] = {}


class Pointer(OfStore):
    """checkpoint.json, which points to a recipe's trained weights in the store.

    overrides: `section.key=value` of a variant. checkpoint: the folder in the store. samples: the digest of what was trained on.
    """

    recipe: Name
    overrides: Overrides = []
    run: Name
    checkpoint: CheckpointName
    samples: Annotated[str, Field(max_length=SMALL)]
    sha256: Sha256
    step: Step
    precision: Precision | None = None
    notes: list[Line] = []
    source: Sha256 | None = None  # its digest, for a network of one's own
    started_from: Sha256 | None = None  # of the weights that the run started from
    data: Trained

    @model_validator(mode="after")
    def _of_the_run(self) -> "Pointer":
        if self.checkpoint.split("/")[1] != self.run:
            raise ValueError("checkpoint: of another run")
        return self


class Published(OfStore):
    """published.json, which points to a version in the store. model: its folder there."""

    model: ModelName
    version: VersionName
    sha256: Sha256


class Latest(Document):
    """latest.json of a recipe in a store."""

    version: VersionName


class Promotion(Document):
    """A record of jobs/publishing/promote.py: who gave a name to a version, when and why, and which version had it before."""

    name: Line
    version: VersionName
    before: VersionName | None = None
    who: Line
    when: Time
    why: Line | None = None


class StartedFrom(Document):
    """The weights that a training started from, instead of its network's initialisation.

    name: a version's or a checkpoint's place, or a file's name; weights: the sha256 of that file. sha256: of what of it the run
    keeps. fresh: the tensors that it does not have, or not in that shape, which started from their initialisation. step: of the
    checkpoint, where the run went on from it with all of its state.
    """

    name: Line
    weights: Sha256
    sha256: Sha256
    fresh: list[Line] = []
    step: Step | None = None


class Began(Document):
    """began.json of a run: who began it, when, with which code, on which data."""

    who: Line
    when: Time
    repository: Line | None = None
    commit: Commit | None = None
    dirty: bool | None = None
    diff: Sha256 | None = None  # of what was not committed
    data: Line
    shard_bytes: int | None = Field(None, ge=0, lt=2**63)
    codec: Line | None = None
    licences: Licences = {}
    datasets: dict[Line, dict[str, Any]] | None = None
    started_from: StartedFrom | None = None


class Machine(Document):
    """machine.json of a run: what led its computation."""

    python: Line
    cpu: Line
    instructions: Line
    libraries: dict[Line, Line]


class ProvenanceData(Document):
    """What provenance.json says of the training data; what older versions of memoir did not say, or nobody knows, is None."""

    task: Line | None = None
    digest: Line | None = None
    mixed_with: dict[Name, Line] = {}  # the digests of a mixture's other tasks
    location: Line | None = None
    licences: Licences = {}


class OwnNetwork(Document):
    """A network of one's own: module:Class, and the digest of its source when it was trained."""

    name: Line
    source: Sha256 | None = None


class Origin(Document):
    """The key that is read from the run.json of a run when it begins: the sha256 of the weights that it starts from."""

    started_from: Sha256 | None = None


class Imported(Document):
    """Where a version that was not trained here comes from.

    file, sha256: the checkpoint's. location: what was given for it. release: whose weights they are, a module of
    jobs/importing. licence, source: as whoever imported it states them.
    """

    file: Line
    sha256: Sha256
    location: Line
    release: Line
    licence: Line | None = None
    source: Line | None = None


class Provenance(Document):
    """provenance.json of a published version."""

    recipe: Name
    network: OwnNetwork | None = None
    step: Step
    data: ProvenanceData
    run: Line | None = None
    who: Line | None = None
    when: Time | None = None
    repository: Line | None = None
    commit: Commit | None = None
    dirty: bool | None = None
    diff: Sha256 | None = None
    parent: VersionName | None = None
    imported: Imported | None = None
    started_from: StartedFrom | None = None
    overrides: Overrides = []
    precision: Precision | None = None
    notes: list[Line] = []
    machine: Machine | None = None
    libraries: dict[Line, Line] = {}


class Done(Document):
    """done.json of a run: the folder of its final checkpoint."""

    checkpoint: Annotated[str, Field(pattern=r"^step-[0-9]{8}$")]


class Position(Document):
    """Where a run stands in its data."""

    epoch: int = Field(ge=0, lt=2**31)
    batch: int = Field(ge=0, lt=2**31)


class State(Document):
    """state.json of a checkpoint."""

    step: Step
    position: Position
    batches: str
    precision: Precision
    notes: list[Line] = []


class SavedRecipe(Document):
    """The keys that are read from the recipe.json of a checkpoint when training resumes from it."""

    model: dict[str, Any]
    objective: dict[str, Any] = {}
    data: dict[str, Any] = {}
    optimisation: dict[str, Any]


class Record(Document):
    """A line of metrics.jsonl."""

    step: Step


def read_document(data: bytes, kind: Any, where: str, mend: str) -> Any:
    """The value of a JSON file, once it is known to be of this kind.

    data: contents. kind: a class above, or a type of such classes. where, mend: what the message begins and ends with.
    Raises UserError, which names the key that is wrong.
    """
    try:
        value = parse_json(data, where)
    except UserError:
        raise UserError(f"{where}: damaged; {mend}") from None
    check_document(value, kind, where, mend)
    return value


def check_document(value: Any, kind: Any, where: str, mend: str) -> None:
    """Raise UserError, as `read_document` does, unless a value is of this kind."""
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        if isinstance(known := first.get("ctx", {}).get("error"), UserError):
            raise UserError(f"{where}: {known}; {mend}") from None
        what = ": ".join(
            [".".join(str(part)[:100] for part in first["loc"]), first["msg"].removeprefix("Value error, ")]
        )
        raise UserError(f"{where}: damaged, or of another version of memoir ({what.strip(': ')}); {mend}") from None


def read_records(data: bytes, where: str, mend: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. Raises UserError for a line that is not a record."""
    records = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            records.append(parse_json(line, where, finite=False))  # a loss may be infinite
        except UserError:
            raise UserError(f"{where}:{number}: damaged; {mend}") from None
    check_document(records, list[Record], where, mend)
    return records


def read_sums(data: bytes, where: str, mend: str) -> dict[str, str]:
    """File name -> sha256, from SHA256SUMS or checkpoint.sha256. Raises UserError for another file, or a name with a path."""
    sums: dict[str, str] = {}
    for line in data.splitlines():
        found = re.fullmatch(rb"([0-9a-f]{64})  ([\x21-\x7e]+)", line)
        name = found[2].decode() if found else ""
        if not found or not FILE.fullmatch(name) or name in sums:
            raise UserError(f"{where}: damaged; {mend}")
        sums[name] = found[1].decode()
    return sums
