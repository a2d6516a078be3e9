"""A file of somebody else's weights, as the weights of a recipe's network."""

from typing import NamedTuple, cast

from torch import Tensor, nn

from jobs.importing.read import at_hand, read_tensors
from jobs.importing.releases import translated
from jobs.recipe import Recipe, build_model
from pipeline.errors import printable
from pipeline.shards.format import file_sha256


class Foreign(NamedTuple):
    """Weights from outside.

    weights: exactly what the network's state_dict has. release: whose they are, a name of `RELEASES`, or OURS. file: its name;
    sha256: of it.
    """

    weights: dict[str, Tensor]
    release: str
    file: str
    sha256: str


def read_foreign(source: str, recipe: Recipe) -> Foreign:
    """The weights of a published checkpoint for a recipe's network.

    source: a path, or a URI of `pipeline.storage`. Raises UserError for a file that is not there, is damaged, would run code,
    is of no known release or of another network's, or does not fit the recipe's options.
    """
    with at_hand(source) as path:
        sha256 = file_sha256(path)
        tensors = read_tensors(path, source)
    network = cast("nn.Module", build_model(recipe.model, recipe.objective))
    release, weights = translated(tensors, network, recipe.model.name, source)
    return Foreign(weights, release, printable(source.rstrip("/").rpartition("/")[2]), sha256)
