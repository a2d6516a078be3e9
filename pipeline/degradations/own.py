"""A degradation that the user wrote, found as pipeline.own_code finds code. CONTRIBUTING.md has an example.

Only a build imports the class (`Own.found`). Readers of a built dataset or a published model use the record of it and
import nothing: the record may come from a store, so the names of modules in it are only text.
"""

import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, create_model, model_validator

from pipeline.degradations.base import Degradation
from pipeline.degradations.orientation import Turns
from pipeline.errors import UserError, nearest
from pipeline.images import UnusableImageError
from pipeline.keyed import philox
from pipeline.own_code import NAME, importing, member, source_file, told

_LOADED: dict[tuple[Path, str], ModuleType] = {}  # keyed by the file and the sha256 of its source


class Own(Degradation):
    """A class that the user wrote, its options, and what a build recorded about it.

    In a task: {kind: mypackage.fog:Fog, density: 0.3}. The class takes the options, as a pydantic model or by the signature
    of its constructor, and has

    - levels: the numbers, 0 or more, of the versions that are stored for each image;
    - degrade(image, level, rng): one version of an image, uint8 or uint16 (H, W, C), which it must not write to; returns
      the same shape and dtype. All randomness comes from `rng`, a numpy Generator that is keyed by the image, the level
      and the option `seed`, where there is one;
    - turns, if it has a direction: "flips", "half turn" or "none", as in pipeline.degradations.orientation.

    A change of the class's source file has its shards built again; a change of other files that it imports does not.
    """

    kind: str = Field(pattern=NAME, max_length=200, description="module:Class, from the current directory")
    options: dict[str, Any] = Field({}, description="with all defaults; a task has them beside `kind`")
    made_at: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        (), description="the levels; a build records them"
    )
    turned: Turns = Field("all", description="its turns; a build records them")
    source: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="sha256 of the file; a build records it")

    restores: ClassVar[str] = "Images degraded by code of its authors' own"

    _instance: Any = PrivateAttr(None)
    _file: str = PrivateAttr("")

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        beside = {key: each for key, each in value.items() if key not in cls.model_fields}
        if not beside:
            return value
        if value.keys() & {"options", "made_at", "turned", "source"}:
            raise ValueError(
                "options, made_at, turned and source are what a build records; write your options beside kind"
            )
        return {"kind": value.get("kind"), "options": beside}

    @property
    def levels(self) -> tuple[int, ...]:
        """As Degradation.levels."""
        return self.made_at

    @property
    def turns(self) -> Turns:
        """As Degradation.turns."""
        return self.turned

    def said(self) -> dict[str, list[str]]:
        """As Degradation.said."""
        options = {key: [str(value)] for key, value in self.options.items() if key != "seed"}
        return {"class": [self.kind], "levels": [str(level) for level in self.levels], **options}

    def found(self, here: Path) -> "Own":
        """The same with its class and the record of it. here: the folder that is searched first.

        It runs the user's code. Raises UserError, which names the file, for any error in that code, and for another
        source than the recorded one.
        """
        module_name, _, name = self.kind.partition(":")
        path = source_file(module_name, here)
        shown = str(path.relative_to(here) if path.is_relative_to(here) else path)
        source = path.read_bytes()
        sha256 = hashlib.sha256(source).hexdigest()
        if self.source not in (None, sha256):
            raise UserError(
                f"{path}: not the file that the build began with; the same one on all machines, and build again"
            )
        of_it = member(_module(module_name, path, source, sha256, here), name, shown)
        if not isinstance(of_it, type):
            raise UserError(f"{shown}: {name} is no class but {type(of_it).__name__}")
        instance, options = _instance(of_it, self.options, shown)
        levels = _levels(instance, f"{shown}: {name}")
        _check_signature(instance, f"{shown}: {name}")
        turned = getattr(instance, "turns", "all")
        if turned not in get_args(Turns):
            raise UserError(f"{shown}: {name}: turns is {turned!r}, and not one of {', '.join(get_args(Turns))}")
        own = Own(kind=self.kind, options=options, made_at=levels, turned=turned, source=sha256)
        own._instance, own._file = instance, shown
        return own

    def made(self, image: np.ndarray, level: int, key: str) -> tuple[str, np.ndarray, Any]:
        """As Degradation.made. Raises UserError for what the class does wrong."""
        assert self._instance is not None, "only a build runs code of the user's: found() comes first"
        seed = self.options.get("seed", 0)
        rng = philox(seed if isinstance(seed, int) else 0, "own", key, level)
        given = image.view()
        given.flags.writeable = False
        name = self.kind.partition(":")[2]
        try:
            with np.errstate(invalid="raise"):  # raise where NaN is cast to a level
                lq = self._instance.degrade(given, level, rng)
        except UnusableImageError:
            raise
        except Exception as error:
            raise UserError(f"{self._file}: {name}.degrade of {key} at level {level}: {told(error)}") from None
        if not isinstance(lq, np.ndarray) or lq.shape != image.shape or lq.dtype != image.dtype:
            what = f"{lq.dtype} {lq.shape}" if isinstance(lq, np.ndarray) else type(lq).__name__
            if isinstance(lq, np.ndarray) and lq.dtype.kind == "f" and np.isnan(lq).any():
                what += " with NaN"
            raise UserError(
                f"{self._file}: {name}.degrade of {key} at level {level} returns {what}, and the image is "
                f"{image.dtype} {image.shape}; pipeline.depth.levels makes levels of numbers in [0, 1]"
            )
        return f"lq-{level}", np.ascontiguousarray(lq), {self.kind: level}


def _module(name: str, path: Path, source: bytes, sha256: str, here: Path) -> ModuleType:
    """The module made from this source, so that the code that runs is the code that was hashed."""
    with importing(name, here):
        if (path, sha256) in _LOADED:
            return _LOADED[path, sha256]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        before = sys.modules.get(name)
        sys.modules[name] = module  # annotations are looked up there while its classes are made
        try:
            exec(compile(source, path, "exec"), module.__dict__)
        finally:
            if before is None:
                del sys.modules[name]
            else:
                sys.modules[name] = before
        _LOADED[path, sha256] = module
        return module


def _instance(of_it: type, options: dict[str, Any], shown: str) -> tuple[Any, dict[str, Any]]:
    """An object of the class, and all its options as JSON has them. Raises UserError."""
    name = of_it.__name__
    model = of_it if issubclass(of_it, BaseModel) else _model(of_it, shown)
    if unknown := sorted(options.keys() - model.model_fields.keys()):
        raise UserError(
            f"{shown}: {name} has no option {unknown[0]!r}; {nearest(unknown[0], list(model.model_fields))}"
        )
    try:
        checked = model.model_validate(options)
        resolved = checked.model_dump(mode="json")
        json.dumps(resolved, allow_nan=False)
        made = checked if model is of_it else of_it(**{key: getattr(checked, key) for key in model.model_fields})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "options"
        raise UserError(f"{shown}: {name}: {key}: {first['msg'].removeprefix('Value error, ')}") from None
    except Exception as error:
        raise UserError(f"{shown}: {name}: with these options it raises {told(error)}") from None
    return made, resolved


def _model(of_it: type, shown: str) -> type[BaseModel]:
    """The options of a class, by the signature of its constructor."""
    fields: dict[str, Any] = {}
    try:
        parameters = inspect.signature(of_it, eval_str=True).parameters if "__init__" in vars(of_it) else {}
    except Exception as error:
        raise UserError(f"{shown}: {of_it.__name__}: {told(error)}") from None
    for key, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f"{shown}: {of_it.__name__}: {parameter} takes whatever comes; name the options one by one")
        if parameter.annotation is parameter.empty:
            raise UserError(f"{shown}: {of_it.__name__}: the option {key} has no type; write {key}: float, for example")
        fields[key] = (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
    return create_model(of_it.__name__, __config__=ConfigDict(extra="forbid"), **fields)


def _levels(instance: Any, where: str) -> tuple[int, ...]:
    levels = getattr(instance, "levels", None)
    if levels is None:
        raise UserError(
            f"{where} has no levels: the numbers of the versions that are stored of each image, (1,) of one"
        )
    fits = isinstance(levels, Sequence) and all(type(each) is int and 0 <= each < 2**31 for each in levels)
    if not fits or not levels or len(set(levels)) < len(levels):
        raise UserError(f"{where}: levels is {levels!r}, and not whole numbers from 0 on, each once")
    return tuple(levels)


def _check_signature(instance: Any, where: str) -> None:
    degrade = getattr(instance, "degrade", None)
    if not callable(degrade):
        raise UserError(f"{where} has no degrade(image, level, rng)")
    signature = inspect.signature(degrade)
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise UserError(f"{where}: it is called as degrade(image, level, rng), and is degrade{signature}") from None
