"""What a run starts from instead of its network's initialisation: the weights of another version, or a file from outside.

They go with the run, as <run>/start.safetensors in the store: all that trains it, wherever, has them from there.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from jobs.documents import SMALL, Origin, read_document
from jobs.origin import FILE as ORIGIN
from jobs.recipe import Recipe, build_model
from pipeline.console import tell
from pipeline.errors import UserError, printable, some
from pipeline.shards.format import file_sha256
from pipeline.storage import Storage, storage

if TYPE_CHECKING:
    from torch import Tensor, nn  # takes seconds to import, and a run without other weights is planned without

    from jobs.models import Network

FILE = "start.safetensors"
GOES_ON = "continues.sha256"  # of a run that goes on from another's checkpoint: the digest of that


class Start(NamedTuple):
    """What a run starts from.

    files: to be put into its folder, the one that says that all are there last: a safetensors file of those tensors of the network
    that are given; or a whole checkpoint, of a run that it goes on from. sha256: of these. name, weights: where they come from, and
    the sha256 of that file of weights. fresh: the tensors of the network that it lacks, which start from their initialisation.
    step: what the run goes on from has trained so many.
    """

    files: dict[str, bytes]
    sha256: str
    name: str
    weights: str
    fresh: tuple[str, ...] = ()
    step: int | None = None

    def told(self) -> dict[str, Any]:
        """What records say of it, see `jobs.documents.StartedFrom`."""
        told = {"name": self.name, "weights": self.weights, "sha256": self.sha256, "fresh": list(self.fresh)}
        return told | ({} if self.step is None else {"step": self.step})


Begins = Callable[[Recipe], Start | str | None]  # what a run of a recipe starts from, or its sha256


def reader(reference: str | None, runs: Path, store: str, *, partial: bool = False) -> Begins | None:
    """What reads the weights that a recipe's run starts from; they are read when its recipe is known. Raises UserError.

    reference: a model as `memoir restore --model` takes it, or a checkpoint file that `memoir import` reads; None: there are
    none. partial: take the tensors that fit, and name those that do not on stderr; without it, all must fit.
    """
    if reference is None:
        if partial:
            raise UserError("--from-partial: belongs to --from VERSION, and none is given")
        return None
    return lambda recipe: read_start(reference, recipe, runs, store, partial=partial)


def keeper(run: str) -> Begins:
    """What knows what a run on a cluster starts from: what whoever submitted it has put into its folder.

    run: the URI of its folder.
    """

    def begins(recipe: Recipe) -> str | None:
        there = storage(run).names()
        if GOES_ON in there:
            return storage(run).read(GOES_ON, 64).decode()
        return storage(run).sha256(FILE) if FILE in there else None

    return begins


def read_start(reference: str, recipe: Recipe, runs: Path, store: str, *, partial: bool) -> Start:
    """The weights of a trained model, or of a file, for the network of a recipe. Arguments and errors: see `reader`."""
    from safetensors.torch import save

    from jobs.importing.read import SUFFIXES

    network = cast("nn.Module", build_model(recipe.model, recipe.objective))
    own = network.state_dict()
    foreign = reference.lower().endswith(SUFFIXES)
    name, sha256, held = _of_file(reference, recipe, network, partial) if foreign else _of_model(reference, runs, store)
    taken = {key: held[key] for key in own if key in held and held[key].shape == own[key].shape}
    fresh = tuple(sorted(own.keys() - taken.keys()))
    left = sorted(held.keys() - taken.keys())
    if (fresh or left) and not partial:
        raise UserError(f"{reference}: {_misfits(fresh, left, own, held)}; --from-partial takes what fits")
    if not taken:
        raise UserError(f"{reference}: no tensor of it fits the recipe's network; {_misfits(fresh, left, own, held)}")
    for key in fresh:
        there = f", which there is {tuple(held[key].shape)}" if key in held else ""
        tell(f"{reference}: {key} {tuple(own[key].shape)} starts from its initialisation{there}")
    for key in left:
        if key not in own:
            tell(f"{reference}: {key} {tuple(held[key].shape)} is not taken, the recipe's network has none")
    data = save({key: tensor.to(own[key].dtype).contiguous() for key, tensor in taken.items()})
    return Start({FILE: data}, hashlib.sha256(data).hexdigest(), name, sha256, fresh)


def _of_model(reference: str, runs: Path, store: str) -> tuple[str, str, "dict[str, Tensor]"]:
    """Where the weights of a trained model are, the sha256 of their file, and its tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from jobs.restoring.checkpoint import WEIGHTS, copy_weights

    with TemporaryDirectory(prefix="memoir-") as folder:
        path = Path(folder, WEIGHTS)
        uri = copy_weights(reference, runs, store, path)
        try:
            return printable(uri), file_sha256(path), load_file(path)
        except SafetensorError as error:
            raise UserError(f"{uri}/{WEIGHTS}: not a safetensors file ({error})") from None


def _of_file(
    reference: str, recipe: Recipe, network: "nn.Module", partial: bool
) -> tuple[str, str, "dict[str, Tensor]"]:
    """The name of a checkpoint file, its sha256, and its tensors: those of a release, or with `partial` what has our names."""
    from jobs.importing.read import at_hand, read_tensors
    from jobs.importing.releases import releases, translated

    with at_hand(reference) as path:
        tensors, sha256 = read_tensors(path, reference), file_sha256(path)
    if not partial or any(release.fits(tensors.keys()) for release in releases().values()):
        tensors = translated(tensors, network, recipe.model.name, reference)[1]
    return printable(reference.rpartition("/")[2]), sha256, tensors


def _misfits(fresh: tuple[str, ...], left: list[str], own: "dict[str, Tensor]", held: "dict[str, Tensor]") -> str:
    """In words what of a file's tensors does not fit the network's."""
    other = [f"{key} {tuple(held[key].shape)} and not {tuple(own[key].shape)}" for key in fresh if key in held]
    missing, unknown = [key for key in fresh if key not in held], [key for key in left if key not in own]
    said = {"of another shape": other, "missing": missing, "that the recipe's network has not": unknown}
    return "; ".join(f"{len(keys)} tensors {what}: {some(keys)}" for what, keys in said.items() if keys)


def keep_start(place: Storage, start: Start | None) -> None:
    """Put what a run starts from into its folder, once. place: the folder."""
    if start is not None and (last := [*start.files][-1]) not in place.names(last):
        for name, data in start.files.items():
            place.write(name, data)


def load_start(model: "Network", place: Storage, folder: Path) -> str | None:
    """Load the weights that a run starts from, if its origin names some, into its untrained model; returns their sha256.

    place: the run's folder. folder: a local one for the copy. Raises UserError if they are missing or changed.
    """
    try:
        made_of = read_document(place.read(ORIGIN, SMALL), Origin, f"{place.uri}/{ORIGIN}", "train again")
    except FileNotFoundError:
        return None
    if (sha256 := made_of.get("started_from")) is None:
        return None
    from safetensors.torch import load_file

    try:
        place.download(FILE, folder / FILE)
    except FileNotFoundError:
        raise UserError(f"{place.uri}/{FILE}: missing; give --from again, the same command writes it") from None
    if file_sha256(folder / FILE) != sha256:
        raise UserError(f"{place.uri}/{FILE}: damaged (its sha256 is not {sha256[:16]}...); remove it, and train again")
    held = load_file(folder / FILE)
    model.load_state_dict(held, strict=False)  # what is missing was told when the run was planned
    return str(sha256)
