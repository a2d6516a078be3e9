"""Trained models by reference: the checkpoint of a recipe, a version published in a store, or one that comes with memoir.

A version is the folder <store>/models/<recipe>/<version>. SHA256SUMS is written last: without it there is no version.
"""

import re
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.documents import SMALL, Latest, Pointer, Provenance, Published, check_document, read_document, read_sums
from jobs.recipe import RECIPES, ResolvedRecipe, named_here, resolved_model
from jobs.source import is_own, present_digest
from jobs.variant import reference as parted
from pipeline.config import parse_json, parse_yaml
from pipeline.console import tell
from pipeline.depth import Bits
from pipeline.errors import UserError, nearest
from pipeline.params import project_store
from pipeline.shards.format import file_sha256
from pipeline.storage import Storage, storage
from pipeline.task import Task

if TYPE_CHECKING:
    from torch import nn  # takes seconds to import, and looking a model up does without

    from jobs.models import Network

WEIGHTS = "model.safetensors"
SUMS = "SHA256SUMS"
LATEST = "latest"  # the name of the version that a recipe's URI stands for
LABEL = "[a-z][a-z0-9-]{0,39}"  # such a name; <name>.json says which version has it
AGAIN = "publish again"
SHIPPED = Path(__file__).parents[1] / "shipped"  # a store with the models that come with memoir
SPARE = 10_000  # tensors that a model may have beyond those of its file; with more, it is refused
_tell_once = cache(tell)


@dataclass(frozen=True)
class Trained:
    """A model with its weights.

    model: in eval mode, on the CPU; see jobs.models for what it offers. recipe: resolved, as it was trained. name: of the
    recipe. uri: the folder that holds the weights. sha256: of model.safetensors. task: colour and degradation of the
    training images and their sources, with the keys of pipeline.task.Task.
    """

    model: "Network"
    recipe: dict[str, Any]
    name: str
    uri: str
    sha256: str
    task: dict[str, Any]

    @property
    def bits(self) -> Bits:
        """The bits a channel of the images that the model was trained on; tasks of older versions of memoir do not say."""
        bits: Bits = self.task.get("bits", 8)
        return bits


@dataclass(frozen=True)
class Version:
    """A published version. sums: file name -> sha256, from SHA256SUMS."""

    store: Storage
    sums: dict[str, str]

    def read(self, name: str) -> bytes:
        """A small file of the version. Raises UserError if it is missing or not what was published."""
        with TemporaryDirectory(prefix="memoir-") as folder:
            path = Path(folder, name)
            self.download(name, path, SMALL)
            return path.read_bytes()

    def download(self, name: str, path: Path, limit: int | None = None) -> None:
        """Copy a file of the version to `path`. limit: its most bytes. Raises as `read`."""
        if name not in self.sums:
            raise UserError(f"{self.store.uri}/{SUMS}: does not list {name}; remove the version and publish again")
        fetch(self.store, name, self.sums[name], path, limit)


def load_model(reference: str, runs: Path, trust: Collection[str] = (), store: str | None = None) -> Trained:
    """A trained model, ready to restore.

    reference: a recipe with runs/<recipe>/checkpoint.json; runs/<recipe>/published.json, for the version that it names; the
    folder or URI of a published version, or of <store>/models/<recipe>, which stands for its latest version; RECIPE@NAME or
    RECIPE@VERSION, which is in the store; or a recipe that is not trained in `runs` and whose model comes with memoir, which
    is said on stderr. Only weights whose sha256 is the recorded one are loaded. store: where the checkpoints
    and versions are that files in `runs` and names stand for; that of params.yaml in the current directory by default.
    trust: networks of one's own, modules or packages that may be imported, beside those that a recipe file here names.
    Raises UserError, naming what there is instead, for another reference; for a checkpoint that is missing, changed, or of
    another architecture than its recipe; and for a network that is not to be trusted.
    """
    found = _find(reference, runs, store)
    return _trained(found, reference, trust) if isinstance(found, Checkpoint) else _published(found, trust)


def copy_weights(reference: str, runs: Path, store: str | None, path: Path) -> str:
    """Copy the weights of a trained model to a local file; returns the place they come from. Errors are those of `load_model`."""
    found = _find(reference, runs, store)
    if isinstance(found, Checkpoint):
        found.download(path)
    else:
        found.download(WEIGHTS, path)
    return found.store.uri


class Training(NamedTuple):
    """The training of a model. recipe: for `read_recipe`; overrides: its values. place: the run's folder. step: of the final one."""

    recipe: str
    overrides: list[str]
    place: Storage
    step: int


def training_of(reference: str, runs: Path, store: str | None) -> Training:
    """The training that a model came from. Arguments and errors are those of `load_model`; also for one that was imported."""
    found = _find(reference, runs, store)
    if isinstance(found, Checkpoint):
        pointer, root = found.pointer, found.root.uri
        recipe = parted(reference).recipe
        return Training(recipe, pointer.get("overrides", []), storage(f"{root}/runs/{pointer['run']}"), pointer["step"])
    uri = found.store.uri
    told = read_document(found.read("provenance.json"), Provenance, f"{uri}/provenance.json", AGAIN)
    if told.get("imported") or not told.get("run"):
        raise UserError(f"{uri}: was not trained here, so there is no run to go on; `memoir train --from` starts one")
    root = uri.rsplit("/models/", 1)[0]
    recipe = parted(told["recipe"]).recipe
    return Training(recipe, told.get("overrides", []), storage(f"{root}/runs/{told['run']}"), told["step"])


def trained_portably(reference: str, runs: Path, store: str | None = None) -> bool:
    """Whether a model was trained with `training.portable`. Arguments and errors are those of `load_model`."""
    found = _find(reference, runs, store)
    recipe = found.recipe if isinstance(found, Checkpoint) else version_recipe(found)
    return bool(recipe["training"].get("portable"))


def _find(reference: str, runs: Path, store: str | None) -> "Checkpoint | Version":
    """Where a trained model is."""
    if reference.endswith(".json"):
        return _named(Path(reference), store)
    name = parted(reference).name
    if (runs / name / "checkpoint.json").is_file():
        return read_checkpoint(name, runs, store)
    if "/" in reference or Path(reference).is_dir():
        return find_version(reference)
    recipe, at, label = reference.rpartition("@")
    if at:
        place = f"{project_store(store)}/models/{recipe}"
        return find_version(f"{place}/{label}" if re.fullmatch("[0-9a-f]{12}", label) else f"{place}@{label}")
    if name in shipped():
        version = find_version(f"{SHIPPED}/models/{name}")
        _tell_once(
            f"{name} is not trained in {runs}: it is version {Path(version.store.uri).name}, which comes with memoir"
        )
        return version
    recipe, _, values = name.partition("+")
    if (RECIPES / f"{recipe}.yaml").is_file():
        command = f"memoir train {recipe} --set ...` with its values" if values else f"memoir train {name}`"
        raise UserError(f"{runs / name}/checkpoint.json: not found; `{command} writes it")
    known = [path.parent.name for path in runs.glob("*/checkpoint.json")] + shipped()
    raise UserError(
        f"no model {reference!r} in {runs}; {nearest(name, known)} (or give the folder or URI of a published model)"
    )


def shipped() -> list[str]:
    """The recipes whose models come with memoir."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"models/*/{LATEST}.json"))


@dataclass(frozen=True)
class Checkpoint:
    """What runs/<recipe>/checkpoint.json points to.

    name: of the folder in runs/. root: the store. store: the checkpoint's folder in it. recipe: resolved. pointer: the file's
    contents. task: see `Trained`.
    """

    name: str
    root: Storage
    store: Storage
    recipe: dict[str, Any]
    pointer: dict[str, Any]
    task: dict[str, Any]

    def download(self, path: Path) -> None:
        """Copy the weights to `path`. Raises UserError if they are missing or not those of the pointer."""
        fetch(self.store, WEIGHTS, self.pointer["sha256"], path)


def _named(path: Path, store: str | None) -> Version:
    """The version that a published.json names. Raises UserError if the store lacks it."""
    try:
        published = read_document(path.read_bytes(), Published, str(path), AGAIN)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `memoir publish` writes it") from None
    place = storage(project_store(store))
    version = _version(storage(f"{place.uri}/{published['model']}"))
    if version is None:
        raise UserError(
            f"{place.uri}: lacks {published['model']}, which {path} names; `memoir store copy` brings it from the store that "
            "has it, or ask who published it"
        )
    if version.sums[WEIGHTS] != published["sha256"]:
        raise UserError(f"{version.store.uri}: has other weights than {path} names; {AGAIN}")
    return version


def read_checkpoint(name: str, runs: Path, store: str | None = None) -> Checkpoint:
    """The final checkpoint of a recipe. store: see `load_model`.

    Raises UserError if there is none, or if what it points to is not there.
    """
    path = runs / name / "checkpoint.json"
    try:
        pointer = read_document(path.read_bytes(), Pointer, str(path), "train again")
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `memoir train {name}` writes it") from None
    data = pointer["data"]
    task = {"bits": data.get("bits", 8)}
    task |= {name: data[name] for name in ("colour", "degradation", "splits") if name in data}
    task |= {"negatives": data["negatives"]} if data.get("negatives") else {}
    check_document(task, Task, str(path), "train again")
    root = storage(project_store(store))
    place = storage(f"{root.uri}/{pointer['checkpoint']}")
    try:
        recipe = parse_json(place.read("recipe.json", SMALL), f"{place.uri}/recipe.json")
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: not found, and {path} points to it; `memoir store copy` brings it from the store that has it, "
            "or train again"
        ) from None
    check_document(recipe, ResolvedRecipe, f"{place.uri}/recipe.json", "train again")
    return Checkpoint(name, root, place, recipe, pointer, task)


def _trained(checkpoint: Checkpoint, reference: str, trust: Collection[str]) -> Trained:
    trust = {*trust, *named_here(parted(reference).recipe, checkpoint.pointer["recipe"])}
    with TemporaryDirectory(prefix="memoir-") as folder:
        path = Path(folder, WEIGHTS)
        checkpoint.download(path)
        uri = checkpoint.store.uri
        model = assemble(checkpoint.recipe, path, uri, trust)
    _compare_source(checkpoint.recipe, checkpoint.pointer.get("source"), uri)
    return Trained(model, checkpoint.recipe, checkpoint.name, uri, checkpoint.pointer["sha256"], checkpoint.task)


def version_recipe(version: Version) -> dict[str, Any]:
    """The resolved recipe of a published version."""
    where = f"{version.store.uri}/recipe.yaml"
    recipe: dict[str, Any] = parse_yaml(version.read("recipe.yaml"), where)
    check_document(recipe, ResolvedRecipe, where, AGAIN)
    return recipe


def _published(version: Version, trust: Collection[str]) -> Trained:
    uri = version.store.uri
    recipe, task = version_recipe(version), parse_yaml(version.read("task.yaml"), f"{uri}/task.yaml")
    check_document(task, Task, f"{uri}/task.yaml", AGAIN)
    provenance = read_document(version.read("provenance.json"), Provenance, f"{uri}/provenance.json", AGAIN)
    name = provenance["recipe"]
    with TemporaryDirectory(prefix="memoir-") as folder:
        path = Path(folder, WEIGHTS)
        version.download(WEIGHTS, path)
        model = assemble(recipe, path, uri, {*trust, *named_here("", parted(name).recipe)})
    _compare_source(recipe, (provenance.get("network") or {}).get("source"), uri)
    return Trained(model, recipe, name, uri, version.sums[WEIGHTS], task)


def _compare_source(recipe: dict[str, Any], trained: str | None, uri: str) -> None:
    """Say on stderr if a network of one's own has another source than when it was trained."""
    name = recipe["model"]["name"]
    if is_own(name) and trained not in (None, present_digest(name)):
        line = f"warning {uri}: the source of {name} here is not the one that it was trained with; results may differ"
        tell(line)


def assemble(recipe: dict[str, Any], weights: Path, where: str, trust: Collection[str] = ()) -> "Network":
    """The model of a resolved recipe with the weights of a safetensors file, in eval mode on the CPU.

    where: for messages. trust: see jobs.recipe.trusts. Raises UserError if the two do not belong together.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        held = load_file(weights)
    except SafetensorError as error:
        raise UserError(f"{where}/{WEIGHTS}: not a safetensors file ({error})") from None
    try:
        with _at_most(len(held) + SPARE):
            try:
                with torch.device("meta"):  # in no memory, until it is known to be of that size
                    own = resolved_model(recipe, trust).state_dict()
            except UserError:
                if not is_own(recipe["model"].get("name")):
                    raise
                own = resolved_model(
                    recipe, trust
                ).state_dict()  # its constructor may read numbers, which meta does not have
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    missing, unknown = sorted(own.keys() - held.keys()), sorted(held.keys() - own.keys())
    other = [name for name in own if name in held and own[name].shape != held[name].shape]
    found = [
        f"{len(names)} {what}, e.g. {names[0]}"
        for names, what in (
            (missing, "tensors missing"),
            (unknown, "tensors that the model has not"),
            (other, "tensors of another shape"),
        )
        if names
    ]
    if found:
        raise UserError(f"{where}: the weights are not of the recipe's model: {'; '.join(found)}")
    model = resolved_model(recipe, trust)
    model.load_state_dict(held)
    return model.eval()


@contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """Raise UserError when more tensors than that become parameters: a recipe may ask for a billion blocks."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    count, builder = 0, threading.get_ident()  # the hook is called by all threads

    def counted(module: "nn.Module", name: str, parameter: object) -> None:
        nonlocal count
        count += parameter is not None and threading.get_ident() == builder
        if count > tensors:
            raise UserError(f"the weights are not of the recipe's model, which has more than {tensors:,} tensors")

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


def fetch(store: Storage, name: str, sha256: str, path: Path, limit: int | None = None) -> None:
    """Copy a file of a store to `path`. limit: its most bytes. Raises UserError if it is missing or its sha256 is another."""
    try:
        store.download(name, path, limit)
    except FileNotFoundError:
        raise UserError(f"{store.uri}/{name}: missing; bring it back, or train or publish again") from None
    if file_sha256(path) != sha256:
        path.unlink()
        raise UserError(
            f"{store.uri}/{name}: changed since it was written (its sha256 is not {sha256[:16]}...); "
            "bring the original back, or remove the folder and train or publish again"
        )


def find_version(uri: str) -> Version:
    """The published version at `uri`; or the latest one of the recipe at `uri`, or that with a name: <store>/models/<recipe>@NAME.

    Raises UserError, naming what is published near by, if there is none.
    """
    found = re.fullmatch(rf"(.+)@({LABEL})", uri.rstrip("/"))
    store, label = storage(found[1] if found else uri), found[2] if found else LATEST
    version = None if found else _version(store)
    if version is not None:
        return version
    number = labelled_version(store, label)
    if number is None:
        known = labels(store) if found else {}
        if known:
            raise UserError(f"{store.uri}: no version is called {label}; {nearest(label, list(known))}")
        raise UserError(_nothing(store))
    version = _version(storage(f"{store.uri}/{number}"))
    if version is None:
        raise UserError(
            f"{store.uri}/{label}.json: version {number} is not there; publish again, or name another version"
        )
    return version


def labelled_version(store: Storage, label: str, folder: str = "") -> str | None:
    """The version that <folder><label>.json names; None without that file. Raises UserError if it is damaged."""
    try:
        pointer = store.read(f"{folder}{label}.json", SMALL)
    except FileNotFoundError:
        return None
    return str(read_document(pointer, Latest, f"{store.uri}/{folder}{label}.json", AGAIN)["version"])


def labels(store: Storage, folder: str = "") -> dict[str, str]:
    """The versions of a recipe that have a name, by name: latest, and those of `memoir promote`. Raises as `labelled_version`."""
    found = (re.fullmatch(rf"{re.escape(folder)}({LABEL})[.]json", name) for name in store.names(folder))
    named = {match[1]: labelled_version(store, match[1], folder) for match in found if match}
    return {label: number for label, number in named.items() if number is not None}


def _version(store: Storage) -> Version | None:
    """The version in this folder, if its SHA256SUMS is there."""
    try:
        text = store.read(SUMS, SMALL)
    except FileNotFoundError:
        return None
    mend = "remove the version and publish again"
    sums = read_sums(text, f"{store.uri}/{SUMS}", mend)
    if WEIGHTS not in sums:
        raise UserError(f"{store.uri}/{SUMS}: damaged; {mend}")
    return Version(store, sums)


def _nothing(store: Storage) -> str:
    """Why there is no published model in a folder, and what there is instead."""
    if store.names(WEIGHTS):
        return (
            f"{store.uri}: no published version, for it has no {SUMS}: half published, or a checkpoint in training; "
            "run `memoir publish`"
        )
    root = store.uri.split("/models/")[0].removesuffix("/models")
    known = [f"{root}/models/{version}" for version in versions(storage(root))]
    return f"{store.uri}: no published model; " + (nearest(store.uri, known) if known else f"nor any in {root}/models")


def versions(store: Storage) -> list[str]:
    """The whole versions that a store holds, as <recipe>/<version>, sorted."""
    names = (name.split("/") for name in store.names("models/"))
    return [f"{parts[1]}/{parts[2]}" for parts in names if len(parts) == 4 and parts[3] == SUMS]
