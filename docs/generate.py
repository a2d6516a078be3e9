"""Write docs/reference/ and docs/papers/ from the code: every key of the YAML files, every option of the models, every command.

    python docs/generate.py

A test fails while a page differs from what this would write.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
import typer
from pydantic import BaseModel, TypeAdapter

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs"
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

Row = tuple[str, ...]  # key, type, default, meaning

LINKS = {  # where a page describes the mappings that its keys hold
    "Source": "a-data-set",
    "RecipeParams": "an-entry-of-recipes",
    "Negatives": "negatives",
    "Data": "data",
    "Optimisation": "optimisation",
    "Share": "datamix",
    "Stage": "datastages",
    "Ema": "optimisationema",
    "Span": "a-span",
    "Objective": "objective",
    "Training": "training",
    "Validation": "validation",
    "Evaluation": "evaluation",
    "BenchmarkRun": "evaluationbenchmarks",
}


def pages() -> dict[str, str]:
    """The contents of each page by its name below docs/."""
    return {
        "reference/params.md": _params(),
        "reference/task.md": _task(),
        "reference/recipe.md": _recipe(),
        "reference/commands.md": _commands(),
        "reference/datasets.md": _datasets(),
        **_papers(),
    }


def _params() -> str:
    from pipeline.params import Params, RecipeParams
    from pipeline.raw.manifest import Source

    return _page(
        "params.yaml",
        "What `dvc repro` works on, and where the team's store is.",
        _section("params.yaml", Params),
        _section("A data set", Source),
        _section("An entry of recipes", RecipeParams),
    )


def _task() -> str:
    from pipeline.degradations import chain
    from pipeline.task import _RECORDED, Negatives, Task

    kinds = _union(_RECORDED)
    steps = _union(TypeAdapter(chain.AnyStep))
    return _page(
        "Tasks",
        "A task is one data set build, `pipeline/tasks/<name>.yaml`.",
        _section("A task", Task),
        _section("negatives", Negatives),
        *(_section(f"degradation: {_kind(kind)}", kind) for kind in kinds),
        *(_section(f"A step of a chain: {_kind(step)}", step) for step in steps),
    )


def _recipe() -> str:
    from jobs.recipe import (
        BenchmarkRun,
        Data,
        Ema,
        Evaluation,
        Objective,
        Optimisation,
        Recipe,
        Share,
        Span,
        Stage,
        Training,
        Validation,
    )

    return _page(
        "Recipes",
        "A recipe is one trained system, `jobs/recipes/<name>.yaml`. The keys of `model` are those of its class: [MemNet]"
        "(../papers/memnet.md), [MemoryNet](../papers/memorynet.md), [time-lapse](../papers/timelapse.md), [DRCNet]"
        "(../papers/drcnet.md).",
        _section("A recipe", Recipe),
        _section("data", Data),
        _section("data.mix", Share),
        _section("data.stages", Stage),
        _section("optimisation", Optimisation),
        _section("A span", Span),
        _section("optimisation.ema", Ema),
        _section("objective", Objective),
        _section("training", Training),
        _section("validation", Validation),
        _section("evaluation", Evaluation),
        _section("evaluation.benchmarks", BenchmarkRun),
    )


def _papers() -> dict[str, str]:
    """A page for each paper: what departs from it, the recipes with its settings, the options of its model."""
    from jobs.options import MODELS, model_class, options_of
    from jobs.recipe import RECIPES, read_recipe

    found = {}
    for name, class_name in MODELS.items():
        cls = model_class(name)
        title, _, text = _prose(inspect.getdoc(sys.modules[cls.__module__]) or "").partition("\n")
        with torch.device("meta"):
            count = sum(p.numel() for p in cls().parameters())
        rows = []
        for path in sorted(RECIPES.glob(f"{name}-*.yaml")):
            recipe = read_recipe(path.stem)
            said = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]
            tests = ", ".join(f"{run.benchmark} on `{run.data}`" for run in recipe.evaluation.benchmarks)
            rows.append((f"`{path.stem}`", f"`{recipe.data.task}`", _cell(tests), _cell(" ".join(said))))
        schema = options_of(name).model_json_schema()
        found[f"papers/{name}.md"] = _page(
            title.rstrip("."),
            f"{text.strip()}\n\nWith its default options the model has {count:,} parameters. `jobs/models/{name}.py` is the whole of it.",
            f"## Recipes\n\n{_table(rows, ('recipe', 'task', 'scored on', 'what it is'))}",
            f"## Tables and figures\n\n{_table(_suites(name), ('`memoir suite`', 'is', 'shows', 'needs the images of'))}",
            _options(f"{class_name}: the keys of `model`", schema, _documented(cls)),
        )
    return found


def _suites(paper: str) -> list[Row]:
    """A row for each table and figure of a paper."""
    from jobs.evaluation.published import Table, suites

    rows = []
    for name, suite in suites().items():
        if name.partition("-")[0] == paper:
            sets = (
                [g.set for g in suite.columns if g.set and not g.average_of] if isinstance(suite, Table) else suite.sets
            )
            shows = suite.caption if suite.lacking is None else f"{suite.caption} Lacks {suite.lacking}."
            rows.append(
                (
                    f"`{name}`",
                    f"{suite.title}, section {suite.section}",
                    _cell(shows),
                    ", ".join(dict.fromkeys(sets)) or "none",
                )
            )
    return rows


def _datasets() -> str:
    from pipeline.layouts import LAYOUTS

    sections = []
    for name, cls in sorted(LAYOUTS.items()):
        counts = [
            (
                count.split,
                count.subset or "",
                count.role,
                f"{count.number:,}",
                "; ".join(f"{number:,}: {cause}" for number, cause in count.causes.items()),
            )
            for count in cls.counts
        ]
        head = ("split", "subset", "role", "images", "if there are others")
        variants = f"Variants, of which one must be named: {', '.join(f'`{each}`' for each in cls.variants)}.\n\n"
        own = name in ("folder", "pairs", "scenes")  # no publication's
        facts = (
            f"Where: {cls.home or 'see the publication'}. Licence: {cls.licence or 'not known; ask its authors'}.\n\n"
        )
        sections.append(
            f"## {name}\n\n{_prose(inspect.getdoc(cls) or '')}\n\n{'' if own else facts}{variants if cls.variants else ''}"
            f"{_table(counts, head) if counts else 'Any number of images.'}"
        )
    return _page(
        "Published data sets",
        "The layouts that `datasets` in `params.yaml` may name. lq is the degraded image, gt the target. `memoir ingest` "
        "compares the numbers of images with these, and stops at a difference that nobody has accepted. The licence that is named "
        "here goes into the manifest, the shards and the models' cards; `licence:` beside a data set replaces it.",
        *sections,
    )


def _commands() -> str:
    import memoir

    sections = []
    for words, command in _leaves(typer.main.get_command(memoir.app), ()):
        rows: list[Row] = []
        hints = get_type_hints(command.callback)
        usage = [f"memoir {' '.join(words)}"]
        for parameter in command.params:
            if "--help" in parameter.opts:
                continue
            if parameter.param_type_name == "argument":
                word = parameter.name.upper()
                usage.append(f"[{word}]" if not parameter.required else word)
                name = word
            else:
                name = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
            flag = getattr(parameter, "is_flag", False)
            default = (
                parameter.default if isinstance(parameter.default, str | int | float | Path) and not flag else None
            )
            rows.append(
                (
                    name if name.startswith("`") else f"`{name}`",
                    "" if flag else _word(hints[parameter.name]),
                    "" if default is None else f"`{default}`",
                    getattr(parameter, "help", None) or "",
                )
            )
        table = _table(rows, ("", "type", "default", "meaning")) if rows else ""
        sections.append(
            f"## memoir {' '.join(words)}\n\n{inspect.cleandoc(command.help or '')}\n\n    {' '.join(usage)}\n\n{table}"
        )
    return _page("Commands", "Each command says the same with `--help`.", *sections)


def _word(hint: Any) -> str:
    """The type of an option in a word."""
    inside = [each for each in get_args(hint) if each is not type(None)]
    if get_origin(hint) is list:
        return f"{_word(inside[0])}, may be repeated"
    if get_origin(hint) is Literal:
        return " or ".join(f"`{each}`" for each in inside)
    if inside:
        return _word(inside[0])
    return {str: "text", int: "whole number", float: "number", Path: "path", bool: ""}[hint]


def _leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        for name in sorted(command.commands):
            yield from _leaves(command.commands[name], (*words, name))
    else:
        yield words, command


def _union(adapter: TypeAdapter) -> list[type[BaseModel]]:
    """The classes of a union, in its order."""
    found: list[type[BaseModel]] = []

    def look(schema: Any) -> None:
        if isinstance(schema, dict):
            if schema.get("type") == "model" and issubclass(schema["cls"], BaseModel):
                found.append(schema["cls"])
                return
            for each in schema.values():
                look(each)
        elif isinstance(schema, list | tuple):
            for each in schema:
                look(each)

    look(adapter.core_schema)
    return list(dict.fromkeys(found))


def _kind(schema: type[BaseModel]) -> str:
    kind = schema.model_json_schema()["properties"]["kind"]
    return f"`{kind['const']}`" if "const" in kind else "a class of your own"


def _section(title: str, schema: type[BaseModel]) -> str:
    described = schema.model_json_schema()
    rows = [
        (f"`{key}`", _type(value, described), _default(key, value, described), _cell(value.get("description", "")))
        for key, value in described["properties"].items()
        if not (key == "kind" and "const" in value)  # the title says it
    ]
    text = _prose(inspect.getdoc(schema) or "")
    return f"## {title}\n\n{text}\n\n{_table(rows)}"


def _options(title: str, schema: dict[str, Any], meanings: dict[str, str]) -> str:
    rows: list[Row] = []
    nested: list[str] = []
    for key, value in schema["properties"].items():
        if key == "name":
            continue
        rows.append((f"`{key}`", _type(value, schema), _default(key, value, schema), _cell(meanings.get(key, ""))))
        for group in _groups(value, schema):
            inner = [
                (f"`{key}.{k}`", _type(v, schema), _default(k, v, group), _cell(v.get("description", "")))
                for k, v in group["properties"].items()
            ]
            nested.append(f"`{key}`: {_cell(' '.join(group.get('description', '').split()))}\n\n{_table(inner)}")
    return "\n\n".join([f"## {title}", _table(rows), *nested])


def _groups(value: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that a key may hold."""
    choices = [value, *value.get("anyOf", []), *value.get("allOf", [])]
    found = [schema["$defs"][each["$ref"].rpartition("/")[2]] for each in choices if "$ref" in each]
    return [each for each in found if "properties" in each]


def _documented(cls: type) -> dict[str, str]:
    """What the docstring of a class says of each argument: paragraphs `name, name: text`."""
    meanings: dict[str, str] = {}
    text = inspect.getdoc(cls) or ""
    for found in re.finditer(r"^((?:\w+, )*\w+): ((?:.+\n?)(?:^    .+\n?)*)", text, re.MULTILINE):
        for name in found[1].split(", "):
            meanings[name] = " ".join(found[2].split())
    return meanings


def _type(value: dict[str, Any], schema: dict[str, Any]) -> str:
    """A type as a table shows it, with its limits."""
    if "$ref" in value:
        target = value["$ref"].rpartition("/")[2]
        described = schema["$defs"][target]
        if "properties" not in described:
            return _type(described, schema)
        return f"[{target}](#{LINKS[target]})" if target in LINKS else "mapping"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in value:
            return " or ".join(dict.fromkeys(_type(each, schema) for each in value[several]))
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    kind = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
    name = {**kind, "null": "null", "array": "list", "object": "mapping"}.get(value.get("type", ""), "see right")
    if name == "list":
        items = value.get("items", {})
        inside = [_type(each, schema) for each in value.get("prefixItems", [])] or (
            [_type(items, schema)] if items else []
        )
        name += f" of {', '.join(dict.fromkeys(inside))}" if inside else ""
    elif name == "mapping" and isinstance(value.get("additionalProperties"), dict):
        name += f" to {_type(value['additionalProperties'], schema)}"
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = [f"{word} {value[key]:g}" for key, word in limits.items() if key in value]
    return f"{name}, {', '.join(said)}" if said else name


def _default(key: str, value: dict[str, Any], owner: dict[str, Any]) -> str:
    if key in owner.get("required", []):
        return "must be given"
    default = value.get("default")
    plain = default is None or isinstance(default, bool)
    return f"`{json.dumps(default) if plain else default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _prose(text: str) -> str:
    """A docstring as Markdown: its lines may look like tags."""
    return re.sub(r":\n- ", ":\n\n- ", text.replace("<", "&lt;").replace("*", "\\*"))


def _table(rows: list[Row], head: Row = ("key", "type", "default", "meaning")) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _page(title: str, text: str, *sections: str) -> str:
    return "\n\n".join([f"# {title}", text, *sections]).rstrip() + "\n"


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        (OUT / name).parent.mkdir(exist_ok=True)
        (OUT / name).write_text(text)


if __name__ == "__main__":
    main()
