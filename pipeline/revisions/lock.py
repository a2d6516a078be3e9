"""dvc.lock and *.dvc, which are read as DVC reads them and checked for what is used of them."""

from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from pipeline.errors import UserError

LIMIT = 2**24  # the most bytes of a file; a stage has about a thousand
DEPTH = 32  # the deepest nesting: the parameters of a stage are in it


class Out(BaseModel):
    """What a file says of a file or folder that DVC keeps."""

    path: str
    md5: str | None = Field(None, pattern=r"^[0-9a-f]{32}(\.dir)?$")


class TrackedOut(Out):
    """The out of a *.dvc file. size: bytes of all its files."""

    hash: str | None = None
    size: int | None = Field(None, ge=0)


class Tracked(BaseModel):
    """The contents of a *.dvc file: one out, as `dvc add` writes it."""

    outs: tuple[TrackedOut] = Field(description="exactly one")


class Stage(BaseModel):
    """What dvc.lock says of a stage."""

    outs: tuple[Out, ...] = ()


class Lock(BaseModel):
    """The contents of dvc.lock."""

    stages: dict[str, Stage] = {}


def parse(data: bytes, where: str, schema: type[BaseModel]) -> dict[str, Any]:
    """The contents of a file of DVC's, which fit `schema`. data: UTF-8. where: for messages.

    Raises UserError for conflict markers and other text that is no YAML, for aliases (a few lines of them can stand for billions
    of values), tags and deep nesting, and for what does not fit.
    """
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml

    if len(data) > LIMIT:
        raise UserError(f"{where}: longer than {LIMIT:,} bytes, which DVC does not write")
    try:
        text = data.decode("utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) or depth > DEPTH:
                raise UserError(f"{where}: an alias, a tag or a nesting that DVC does not write")
        value = parse_yaml(text, where)
    except UnicodeDecodeError:
        raise UserError(f"{where}: not a text file in UTF-8") from None
    except (yaml.YAMLError, YAMLFileCorruptedError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        mend = "mend the conflict in it" if b"\n<<<<<<< " in b"\n" + data else "take it from git again"
        raise UserError(f"{where}{line}: not YAML; {mend}") from None
    try:
        schema.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {place or 'it'}: {first['msg']}; take it from git again") from None
    return dict(value)
