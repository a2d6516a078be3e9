"""The releases whose weights memoir knows, each a module of this package.

A module has `NETWORK`, the name of our model; `fits(names)`, whether tensors of these names are the release's; and
`translate(weights, network)`, which gives them the names, shapes and dtypes of `network.state_dict()`.
"""

import importlib
from collections.abc import Collection
from typing import Any, Protocol, cast

import torch
from torch import nn

from jobs.recipe import RECIPES
from pipeline.config import parse_yaml, read_limited
from pipeline.errors import UserError, some

RELEASES = (  # modules of this package
    "memnet",
    "memorynet",
    "mprnet",
    "timelapse",
    "drcnet",
)
OURS = "memoir"  # the release of files that have our own names


class Release(Protocol):
    """A module of this package."""

    NETWORK: str

    def fits(self, names: Collection[str]) -> bool:
        """Whether tensors of these names are this release's."""

    def translate(self, weights: dict[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
        """From the release's tensors to exactly the names, shapes and dtypes of `network.state_dict()`.

        Raises UserError for tensors that are missing, left over or of another shape, with the options that would fit.
        """


def releases() -> dict[str, Release]:
    """The releases by name."""
    return {name: cast("Release", importlib.import_module(f"jobs.importing.{name}")) for name in RELEASES}


def translated(
    weights: dict[str, torch.Tensor], network: nn.Module, model: str, shown: str
) -> tuple[str, dict[str, torch.Tensor]]:
    """The name of the release that has these tensors, and the tensors as `network` has them, finite numbers all.

    weights: from `read_tensors`. model: the network's name in recipes. shown: what messages begin with. Raises UserError for
    tensors of no release, of another network's, and for what `translate` refuses.
    """
    own = network.state_dict()
    if weights.keys() == own.keys():
        name, found = OURS, _as(own, weights, shown)
    else:
        known = releases()
        fitting = [name for name, release in known.items() if release.fits(weights.keys())]
        mine = [name for name in fitting if model == known[name].NETWORK]
        if not mine:
            raise UserError(f"{shown}: {_stranger(weights, own, model, [known[name].NETWORK for name in fitting])}")
        name = mine[0]
        try:
            found = known[name].translate(weights, network)
        except UserError as error:
            raise UserError(f"{shown}: {error}") from None
        # a contract of the release's module: what breaks it is a defect, and no user's mistake
        assert {key: (t.shape, t.dtype) for key, t in found.items()} == {
            key: (t.shape, t.dtype) for key, t in own.items()
        }, name
    for key, tensor in found.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{shown}: {key} has numbers that are not finite; download it again, or ask who published it"
            )
    return name, found


def _as(own: dict[str, Any], weights: dict[str, torch.Tensor], shown: str) -> dict[str, torch.Tensor]:
    """Tensors of our own names in the dtypes of the network. Raises UserError for other shapes."""
    if other := [name for name in own if own[name].shape != weights[name].shape]:
        sizes = f"{tuple(weights[other[0]].shape)} and not {tuple(own[other[0]].shape)}"
        raise UserError(
            f"{shown}: {len(other)} tensors of another shape than the recipe's network has, e.g. {other[0]}, {sizes}; give the "
            "options it was trained with, --set model.OPTION=VALUE"
        )
    return {name: weights[name].to(own[name].dtype).contiguous() for name in own}


def _stranger(weights: dict[str, torch.Tensor], own: dict[str, Any], model: str, networks: list[str]) -> str:
    """Why there is no translation to the recipe's model."""
    if networks:
        recipes = some(sorted(_recipes_of(networks[0])), 8)
        return f"weights of {networks[0]}, and the recipe's network is {model}; recipes of {networks[0]}: {recipes}"
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    return (
        f"its tensors ({some(sorted(weights))}) are of no release that memoir knows ({', '.join(RELEASES)}), and not of the "
        f"recipe's network {model} ({len(missing)} missing, {len(unknown)} unknown"
        f"{f', e.g. {unknown[0]}' if unknown else ''}); if they are of it with other options, give those with --set"
    )


def _recipes_of(model: str) -> list[str]:
    """The recipes of jobs/recipes with this model."""
    contents = {path.stem: parse_yaml(read_limited(path), str(path)) for path in RECIPES.glob("*.yaml")}
    return [name for name, content in contents.items() if content["model"]["name"] == model]
