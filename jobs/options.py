"""The options of a model: the arguments of its class, as a recipe may state them."""

import importlib
import inspect
import warnings
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    ConfigDict,
    PydanticUserError,
    TypeAdapter,
    create_model,
)
from pydantic_core import PydanticSerializationError, to_jsonable_python

from jobs.source import is_own
from pipeline.config import Frozen
from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import nn  # takes seconds to import, and reading a recipe does without

# jobs/models/<name>.py: its class
MODELS = {"memnet": "MemNet", "memorynet": "MemoryNet", "timelapse": "TimeLapseNet", "drcnet": "DRCNet"}


class ModelOptions(Frozen):
    """The name of a model and the arguments of its class."""

    name: str


def options_of(model: str) -> type[ModelOptions]:
    """ModelOptions with the arguments of a model's class."""
    if is_own(model):
        return _own_options(model)
    parameters = inspect.signature(model_class(model).__init__).parameters.values()
    fields: dict[str, Any] = {
        p.name: (p.annotation, ... if p.default is p.empty else p.default) for p in parameters if p.name != "self"
    }
    fields["name"] = (Literal[model], ...)
    return create_model(f"{MODELS[model]}Options", __base__=ModelOptions, **fields)


def _own_options(model: str) -> type[ModelOptions]:
    """ModelOptions with the arguments of a network of one's own, whose signature may be any.

    A parameter without a type that pydantic knows takes any value. If YAML cannot express its default, such as a class, it is
    left to the class; with **arguments in the signature, other keys are taken too.
    """
    cls = model_class(model)
    try:
        signature = inspect.signature(cls.__init__, eval_str=True)
    except Exception:  # annotations that are only there for a type checker
        signature = inspect.signature(cls.__init__)
    fields: dict[str, Any] = {}
    open_ended = False
    for p in list(signature.parameters.values())[1:]:  # without self
        open_ended |= p.kind is p.VAR_KEYWORD
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            continue
        default = ... if p.default is p.empty else p.default
        if default is not ...:
            try:
                to_jsonable_python(default)
            except PydanticSerializationError:
                continue
        if p.name == "name" or p.kind is p.POSITIONAL_ONLY or p.name.startswith("_"):
            if default is not ...:
                continue
            raise UserError(
                f"{cls.__name__} needs the argument {p.name!r}, which no key can give; rename it, or give it a default"
            )
        fields[p.name] = (_annotation(p.annotation), default)
    fields["name"] = (Literal[model], ...)
    base = type("Options", (ModelOptions,), {"model_config": ConfigDict(extra="allow")}) if open_ended else ModelOptions
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about arguments that have the name of a method of pydantic
            return create_model(f"{cls.__name__}Options", __base__=base, **fields)
    except (PydanticUserError, NameError) as error:
        raise UserError(f"the arguments of {cls.__name__} cannot be keys: {str(error).splitlines()[0]}") from None


def _annotation(annotation: Any) -> Any:
    """The type of a parameter, or Any where pydantic cannot check it."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return Any
    try:
        TypeAdapter(annotation)
    except (PydanticUserError, NameError, TypeError):
        return Any
    return annotation


def model_class(name: str) -> "type[nn.Module]":
    """The class of a model by its name in recipes. Raises UserError if a class of one's own is not there."""
    if is_own(name):
        from jobs.models.own import network_class

        return network_class(name)
    return getattr(importlib.import_module(f"jobs.models.{name}"), MODELS[name])


def evaluation_options(name: str) -> list[str]:
    """The options of a model that change no weights, as `model.KEY`: what its class names in `evaluation_options`."""
    return [f"model.{key}" for key in getattr(model_class(name), "evaluation_options", ())]
