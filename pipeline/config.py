"""YAML files checked against typed, closed schemas; a mistake is one line with file, line and the nearest known key."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import UserError, nearest

Schema = TypeVar("Schema", bound=BaseModel)


class Frozen(BaseModel):
    """Base of every configuration: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_yaml(path: Path, schema: type[Schema], overrides: list[str] | None = None) -> Schema:
    """Read and check one YAML file.

    overrides: `section.key=value` strings (value in YAML) that replace what the file says.
    Raises UserError naming file, line, key and the nearest known key.
    """
    try:
        text = path.read_text("utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {_problem(error)}") from None
    if (twice := _twice(root)) is not None:
        raise UserError(f"{path}:{twice.start_mark.line + 1}: {twice.value} is given twice; keep one")
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(data).__name__}")
    for override in overrides or []:
        _override(data, override)
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(path, root, schema, error)) from None


def _override(data: dict[str, Any], override: str) -> None:
    dotted, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}: expected section.key=value")
    *sections, key = dotted.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {override}: {section} has no keys of its own")
    try:
        data[key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: not valid YAML: {_problem(error)}") from None


def _problem(error: yaml.YAMLError) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _twice(node: Any) -> Any:
    """The first key, as a node of the YAML tree, that stands twice in one mapping; YAML lets the last one win."""
    below = []
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                return key
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
            below.append(value)
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    return next((key for each in below if (key := _twice(each)) is not None), None)


def _explain(path: Path, root: Any, schema: type[BaseModel], error: ValidationError) -> str:
    errors = error.errors()
    first = _misspelt(errors) or errors[0]
    loc = first["loc"]
    dotted = ".".join(str(part) for part in loc)
    message = f"{path}:{_line(root, loc)}: {dotted or 'file'}: "
    if first["type"] == "extra_forbidden":
        return message + "unknown key; " + nearest(str(loc[-1]), _keys(schema, loc[:-1]))
    if first["type"] == "missing":
        return message + "missing; add it"
    given = first.get("input")
    shown = f" (given: {given!r})" if not isinstance(given, dict | list) else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return message + first["msg"].removeprefix("Value error, ") + shown + more


def _misspelt(errors: list[ErrorDetails]) -> ErrorDetails | None:
    """Of an unknown key and a missing one that is spelt alike, the former: it is the mistake, the other follows."""
    missing = [error["loc"] for error in errors if error["type"] == "missing"]
    for error in errors:
        *place, key = error["loc"] or ("",)
        beside = [str(name) for *section, name in missing if section == place]
        if error["type"] == "extra_forbidden" and get_close_matches(str(key), beside, cutoff=0.5):
            return error
    return None


def _line(node: Any, loc: tuple[int | str, ...]) -> int:
    line = node.start_mark.line
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            match = [(k, v) for k, v in node.value if k.value == str(part)]
            if not match:
                continue  # the tag of a union, or a key given on the command line
            line, node = match[0][0].start_mark.line, match[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
    return int(line) + 1


def _keys(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the schema knows at a place, looking through optional and union types."""
    candidates: list[type[BaseModel]] = [schema]
    for part in loc:
        below: list[type[BaseModel]] = []
        for candidate in candidates:
            field = candidate.model_fields.get(str(part))
            below += _schemas(field.annotation) if field else [candidate]
        candidates = below or candidates
    return sorted({field.alias or name for candidate in candidates for name, field in candidate.model_fields.items()})


def _schemas(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [schema for argument in getattr(annotation, "__args__", ()) for schema in _schemas(argument)]
