"""torch's compiler: for the step of a recipe that wants it, and not imported for any other."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.shards.shard_set import CACHE

NAME = "torch._dynamo"


def compiled(objective: nn.Module, device: torch.device) -> nn.Module:
    """The objective, to be compiled at its first step with each shape; what was compiled is kept for later runs.

    Raises UserError where there is no compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(f"optimisation.compile: there is no {compiler} here; install it, set CXX, or leave it out")
    if device.type == "cuda" and find_spec("triton") is None:
        raise UserError("optimisation.compile: there is no triton here; install torch with it, or leave it out")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((CACHE.parent / "compiled").absolute()))
    return cast(nn.Module, torch.compile(objective, dynamic=False))


@contextmanager
def spared() -> Iterator[None]:
    """Have what torch does within not import its compiler, which takes 1.4 s of CPU in each process; where it is imported, it is used.

    Private: torch 2.13 asks it for next to nothing when an optimiser is made, when one steps, and when ranks are joined: to keep that
    out of what is compiled.
    """
    if NAME in sys.modules:
        yield
        return
    stand_in = _StandIn(NAME)
    stand_in.present()
    try:
        yield
    finally:
        stand_in.leave()


class _StandIn(ModuleType):
    """What torch asks its compiler for where nothing is compiled. Whoever asks for more gets the compiler."""

    utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")  # its default

    @staticmethod
    def graph_break() -> None: ...

    @staticmethod
    def disable(function: Any, recursive: bool = True, *, wrapping: bool = True) -> Any:
        return function

    def present(self) -> None:
        sys.modules[NAME] = torch._dynamo = self

    def leave(self) -> None:
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME], torch._dynamo

    def __getattr__(self, name: str) -> Any:
        # What is asked of any module, but for the place of its parts, which their import asks for.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        self.leave()
        return getattr(import_module(NAME), name)
