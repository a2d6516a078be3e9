"""YAML files checked against typed, closed schemas; a mistake is one line with file, line and the nearest known key.

All YAML and JSON files that memoir did not write itself are read here.
"""

import json
import math
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import UserError, nearest

Schema = TypeVar("Schema", bound=BaseModel)

YAML_BYTES = 2**17  # the most bytes of a file; the longest recipe has 3,000, and this many take a second to read
DEPTH = 32  # the deepest nesting
DIGITS = 100  # the most digits of a number


class Frozen(BaseModel):
    """Base of every configuration: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def read_yaml(path: Path, schema: type[Schema], overrides: list[str] | None = None) -> Schema:
    """Read and check one YAML file.

    overrides: `section.key=value` strings (value in YAML) that replace what the file says.
    Raises UserError naming file, line, key and the nearest known key.
    """
    root, data = _parsed(read_limited(path), str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(data).__name__}")
    for override in overrides or []:
        _override(data, override)
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(path, root, schema, error)) from None


def bare_name(name: str) -> str:
    """The name of a task or a recipe, which may be given by its YAML file: without folder and .yaml. Other dots stay."""
    return Path(name).stem if name.endswith(".yaml") else name


def read_limited(path: Path) -> bytes:
    """The contents of a configuration file. Raises UserError if it cannot be read or is longer than YAML_BYTES."""
    try:
        with path.open("rb") as file:
            data = file.read(YAML_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if len(data) > YAML_BYTES:
        raise UserError(f"{path}: longer than {YAML_BYTES:,} bytes, which no configuration needs")
    return data


def parse_yaml(data: bytes, where: str) -> Any:
    """The contents of untrusted YAML text: dictionaries with keys of text, lists, text, numbers, booleans and None.

    data: UTF-8. where: for messages. Time and memory are in proportion to the text, which has at most YAML_BYTES.
    Raises UserError, with the line, for what is not YAML or no configuration needs: tags such as !!python/object,
    aliases (a few lines of them can stand for billions of values), nesting deeper than DEPTH, a key that is given twice
    or that is not text, dates, and numbers that YAML reads as other numbers than they look like (010, 12:30).
    """
    return _parsed(data, where)[1]


def parse_json(data: bytes, where: str, *, finite: bool = True) -> Any:
    """The contents of untrusted JSON text. data: UTF-8. where: for messages. finite: refuse NaN and infinities.

    Raises UserError for what is not JSON, for a key that is given twice, for endless numbers, for text that is not Unicode,
    and for nesting deeper than Python's JSON reader goes.
    """
    try:
        text = data.decode("utf-8")
        numbers: dict[str, Any] = {"parse_constant": _not_finite, "parse_float": _finite} if finite else {}
        value = json.loads(text, object_pairs_hook=_once, **numbers)
        if "\\ud" in text.lower():  # one half of a surrogate pair can be neither printed nor written
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{where}: not a text file in UTF-8") from None
    except UnicodeEncodeError:
        raise UserError(f"{where}: not JSON: it holds half a character") from None
    except RecursionError:
        raise UserError(f"{where}: not JSON that memoir writes: nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {' '.join(str(error).split())}") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{_short(next(name for name in found if names.count(name) > 1))} is given twice")
    return found


def _not_finite(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{_short(text)} is too large for a number")
    return value


TEXT, NUMBER = "tag:yaml.org,2002:str", "tag:yaml.org,2002:int"
KINDS = {  # the kinds of key that are not text in YAML
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:bool": "true or false",
    NUMBER: "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:timestamp": "a date",
}


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses what makes a short text large or deep, or gives it another meaning than it seems to have."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _mistake(f"*{event.anchor} repeats another value; write it out", event)
        if getattr(event, "tag", None) is not None:
            tag = _short(event.tag.replace("tag:yaml.org,2002:", "!!"))
            raise _mistake(f"the tag {tag} is not taken; write the value plainly", event)
        if self.depth == DEPTH:
            raise _mistake(f"nested more than {DEPTH} deep", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        return node

    def _check_keys(self, mapping: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _mistake("a key is a list or a mapping; keys are words", key)
            if key.tag == NUMBER and re.fullmatch(r"0|[1-9]\d*", key.value):  # it means nothing but its digits
                key.tag = TEXT
            if key.tag not in (TEXT, "tag:yaml.org,2002:merge", "tag:yaml.org,2002:value"):
                what = KINDS.get(key.tag, "no text")
                raise _mistake(
                    f"the key {_short(key.value) or 'of no letters'} is {what} in YAML; put it in quotes", key
                )
            if key.tag != TEXT:
                raise _mistake(f"the key {key.value} means something else in YAML; write the keys out", key)
            if key.value in seen:
                raise _mistake(f"{_short(key.value)} is given twice; keep one", key)
            seen.add(key.value)

    def construct_scalar(self, node: Any) -> Any:
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float") and len(node.value) > DIGITS:
            raise _mistake(f"{_short(node.value)}: a number of {len(node.value):,} characters", node)
        if kind in ("int", "float") and ":" in node.value:
            raise _mistake(f"{node.value} is a number in base 60 in YAML; write it plainly, or '{node.value}'", node)
        if kind == "int" and re.match(r"[-+]?0[0-7_]+$", node.value):
            raise _mistake(f"{node.value} is a number in base 8 in YAML; write it without 0, or '{node.value}'", node)
        if kind == "timestamp":
            raise _mistake(f"{node.value} is a date in YAML; put it in quotes", node)
        if not node.value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in node.value):
            raise _mistake("half a character, which can be neither printed nor written", node)
        return super().construct_scalar(node)


def _mistake(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _parsed(data: bytes, where: str, lines: bool = True) -> tuple[Any, Any]:
    """The tree of a YAML text with its lines, and its contents. Raises UserError as `parse_yaml`, with the line if asked."""
    if len(data) > YAML_BYTES:
        raise UserError(f"{where}: longer than {YAML_BYTES:,} bytes, which no configuration needs")
    try:
        loader = _Loader(data.decode("utf-8"))
        root = loader.get_single_node()
        return root, None if root is None else loader.construct_document(root)
    except UnicodeDecodeError:
        raise UserError(f"{where}: not a text file in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"{where}{f':{mark.line + 1}' if mark and lines else ''}: {_problem(error)}") from None
    except ValueError as error:  # a number such as 0x_
        raise UserError(f"{where}: not valid YAML: {error}") from None


def _override(data: dict[str, Any], override: str) -> None:
    dotted, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}: expected section.key=value")
    *sections, key = dotted.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {override}: {section} has no keys of its own")
    data[key] = _parsed(os.fsencode(value), f"--set {override}", lines=False)[1]


def _problem(error: yaml.YAMLError) -> str:
    if type(error) is yaml.MarkedYAMLError:
        return str(error.problem)  # raised by `_mistake`
    return "not valid YAML: " + " ".join(str(getattr(error, "problem", None) or error).split())


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
    if first["type"] == "model_type":
        none = ", or null for none" if _nullable(schema, loc) else ""
        known = ", ".join(_keys(schema, loc))
        return message + f"expected `key: value` pairs{none}, found {_short(repr(given))}; known: {known}"
    shown = f" (given: {_short(repr(given))})" if not isinstance(given, dict | list) else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return message + first["msg"].removeprefix("Value error, ") + shown + _turned(root, loc, first) + more


def _turned(root: Any, loc: tuple[int | str, ...], error: ErrorDetails) -> str:
    """A hint what to write, where YAML read a value as another type than it looks like."""
    given, kind = error.get("input"), error["type"]
    if isinstance(given, str) and kind in ("int_parsing", "int_type", "float_type", "float_parsing"):
        try:
            number = float(given)
        except ValueError:
            return ""
        plain = str(int(number)) if kind.startswith("int") and number.is_integer() else repr(number)
        return f"; {_short(given)} is text in YAML; write {plain}"
    if kind in ("string_type", "literal_error") and isinstance(given, bool | int | float):
        node = _at(root, loc)[1]
        text = node.value if isinstance(node, yaml.ScalarNode) else str(given).lower()
        what = "true or false" if isinstance(given, bool) else "a number"
        return f"; {_short(text)} is {what} in YAML; for the text write '{_short(text)}'"
    return ""


def _misspelt(errors: list[ErrorDetails]) -> ErrorDetails | None:
    """The error of an unknown key that is spelt like a missing one: it is the mistake, and the missing key follows from it."""
    missing = [error["loc"] for error in errors if error["type"] == "missing"]
    for error in errors:
        *place, key = error["loc"] or ("",)
        beside = [str(name) for *section, name in missing if section == place]
        if error["type"] == "extra_forbidden" and get_close_matches(str(key), beside, cutoff=0.5):
            return error
    return None


def _line(root: Any, loc: tuple[int | str, ...]) -> int:
    return _at(root, loc)[0]


def _at(node: Any, loc: tuple[int | str, ...]) -> tuple[int, Any]:
    """The line (from 1 on) of the deepest part of `loc` that the file has, and its node: None if the file lacks the rest."""
    line, rest = node.start_mark.line, node
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            match = [(k, v) for k, v in node.value if k.value == str(part)]
            if not match:
                rest = None
                continue  # the tag of a union, or a key given on the command line
            line, node = match[0][0].start_mark.line, match[0][1]
            rest = node
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = rest = node.value[part]
            line = node.start_mark.line
    return int(line) + 1, rest


def _keys(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the schema knows at a place."""
    at = _schemas_at(schema, loc)
    return sorted({field.alias or name for candidate in at for name, field in candidate.model_fields.items()})


def _nullable(schema: type[BaseModel], loc: tuple[int | str, ...]) -> bool:
    """Whether the schema takes null at a place."""
    fields = [candidate.model_fields.get(str(loc[-1])) for candidate in _schemas_at(schema, loc[:-1])]
    return any(field is not None and type(None) in get_args(field.annotation) for field in fields)


def _schemas_at(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """The schemas of a place, looking through optional and union types."""
    candidates: list[type[BaseModel]] = [schema]
    for part in loc:
        below: list[type[BaseModel]] = []
        tagged = [candidate for candidate in candidates if part in _kinds(candidate)]
        for candidate in tagged or candidates:
            field = candidate.model_fields.get(str(part))
            below += _schemas(field.annotation) if field else [candidate]
        candidates = below or candidates
    return candidates


def _kinds(schema: type[BaseModel]) -> tuple[Any, ...]:
    """The values of `kind` that choose this schema of a union."""
    field = schema.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def _schemas(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [schema for argument in getattr(annotation, "__args__", ()) for schema in _schemas(argument)]
