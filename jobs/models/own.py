"""A network of one's own: any torch.nn.Module that maps images to images, `forward(lq) -> restored`.

It is given here what it lacks of jobs.models.Network, and keeps what it has, also the names of its weights.
"""

import inspect
import types
from typing import Any, cast

import torch
from torch import Tensor, nn

from jobs.models import Batch, Network
from jobs.models.objective import objective
from jobs.models.padding import mirrored
from jobs.source import load, told
from pipeline.errors import UserError, some

CHANNELS = ("in_channels", "img_channel", "inp_channels")  # names of a network's option for its channels


def network_class(name: str) -> type[nn.Module]:
    """The class `module:Class`, with a `training_loss` and a `restore` if it lacks them. Raises UserError."""
    cls = load(name)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        kind = f"the class {cls.__name__}" if isinstance(cls, type) else f"{type(cls).__name__}"
        raise UserError(f"{name.partition(':')[2]} is no torch.nn.Module but {kind}; name the network's class")
    return _complete(cls)


def has_objective(cls: type) -> bool:
    """Whether a class that `network_class` returned had a `training_loss` of its own."""
    return getattr(cls, "training_loss", None) is not _training_loss


def _complete(cls: type[nn.Module]) -> type[nn.Module]:
    lacking = {
        name: method
        for name, method in (("training_loss", _training_loss), ("restore", _restore))
        if not callable(getattr(cls, name, None))
    }
    if not lacking:
        return cls
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return types.new_class(cls.__name__, (cls,), exec_body=lambda body: body.update(lacking | names))


def build(name: str, options: dict[str, Any], terms: dict[str, float] | None) -> Network:
    """The network with these arguments. terms: the objective's, if it has none. Raises UserError, also for its exceptions."""
    cls = network_class(name)
    where = _where(name, cls)
    try:
        model: Any = cls(**options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: its constructor raises {told(error)}") from None
    channels = next((options[key] for key in CHANNELS if isinstance(options.get(key), int)), 3)
    defaults = {"in_channels": channels, "receptive_field": None, "size_multiple": 1, "inputs": ("lq", "gt")}
    for key, value in defaults.items():
        if not hasattr(model, key):
            setattr(model, key, value)
    counts = [model.in_channels, model.size_multiple]
    counts += [] if model.receptive_field is None else [model.receptive_field]
    if not all(type(count) is int and count > 0 for count in counts):
        raise UserError(
            f"{where}: in_channels, size_multiple and receptive_field are whole numbers above 0 (the last may be None)"
        )
    if not (isinstance(model.inputs, tuple | list) and all(isinstance(role, str) for role in model.inputs)):
        raise UserError(f'{where}: inputs are names such as ("lq", "gt")')
    model.objective_terms = dict(terms or {})
    return cast(Network, model)


def _training_loss(self: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The recipe's objective."""
    return objective(_of_any_size(self, batch["lq"]), batch, self.objective_terms)


@torch.no_grad()
def _restore(self: Any, lq: Tensor) -> Tensor:
    """See jobs.models.Network. Sides are mirrored up to multiples of `size_multiple`."""
    assert not self.training, "call eval() first"
    return _of_any_size(self, lq)


def _of_any_size(model: Any, lq: Tensor) -> Tensor:
    restored = model(mirrored(lq, model.size_multiple))
    if model.size_multiple > 1 and isinstance(restored, Tensor):
        restored = restored[..., : lq.shape[2], : lq.shape[3]]
    return cast(Tensor, restored)


def try_out(model: Network, name: str, patch: int, *, ranks: int) -> None:
    """Raise UserError unless a network does with a patch what training asks of it; it is of no use afterwards.

    It must restore a patch and an image of odd sides at their size. With an objective of the recipe's, its loss must have a
    gradient; if there are several ranks, for every parameter, as DistributedDataParallel wants it.
    """
    where = _where(name, type(model))
    device = next(iter(model.parameters())).device if any(True for _ in model.parameters()) else None
    if device is None:
        raise UserError(f"{where}: it has no parameters, so there is nothing to train")
    x = torch.rand((2, model.in_channels, patch, patch), device=device)
    for images in (x, x[..., : patch - 1, : patch - 3]):
        shape = tuple(images.shape)
        mend = (
            ""
            if images is x
            else f"; if its sides must be multiples, say so: size_multiple = 8 in {type(model).__name__}"
        )
        try:
            with torch.no_grad():
                restored = model.eval().restore(images)
        except Exception as error:
            raise UserError(f"{where}: for images of {shape} it raises {told(error)}{mend}") from None
        _check(restored, shape, where, mend)
    if has_objective(type(model)):
        return
    try:
        output = _of_any_size(model.train(), x)
        _check(output, tuple(x.shape), f"{where}, in training", "")
        batch = {"gt": torch.rand_like(x), "weight": x.new_ones(2), "count": x.new_tensor(2.0)}
        objective(output, batch, cast(Any, model).objective_terms)[0].backward()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: in training it raises {told(error)}") from None
    idle = [key for key, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if idle and ranks > 1:
        raise UserError(
            f"{where}: {some(idle)} have no part in the result, and several workers can only train what has: remove them, "
            "or train with one worker"
        )


def _check(restored: Any, shape: tuple[int, ...], where: str, mend: str) -> None:
    if not isinstance(restored, Tensor):
        raise UserError(f"{where}: it returns {type(restored).__name__}, and not a tensor of images")
    if tuple(restored.shape) != shape:
        raise UserError(
            f"{where}: for images of {shape} it returns {tuple(restored.shape)}; both must be the same{mend}"
        )


def _where(name: str, cls: type) -> str:
    """The class and its file, for messages."""
    try:
        file = inspect.getsourcefile(cls)
    except (TypeError, OSError):
        file = None
    return f"model {name}{f' of {file}' if file else ''}"
