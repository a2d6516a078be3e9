"""`memoir continue`: a finished run goes on as another run, longer or at other learning rates, from its last checkpoint."""

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pydantic import ValidationError

from jobs.documents import SMALL, SavedRecipe, State, read_document
from jobs.recipe import Recipe
from jobs.restoring.checkpoint import WEIGHTS, Training, training_of
from jobs.training.resume import SUMS, Checkpoints
from jobs.training.start import GOES_ON, Begins, Start
from pipeline.errors import UserError, printable, some

# What the state of an optimiser, and the order of the samples, do not depend on.
MAY_CHANGE = (
    "length",
    "lr",
    "lr_end",
    "schedule",
    "lr_step",
    "gamma",
    "period",
    "period_factor",
    "warmup",
    "clip",
    "clip_by",
    "clip_over_lr",
)


class Continued(NamedTuple):
    """What `train` needs to go on with a run. recipe: for `read_recipe`; overrides: of the run before, and the new ones."""

    recipe: str
    overrides: list[str]
    begins: Begins


def going_on(reference: str, runs: Path, store: str, overrides: list[str]) -> Continued:
    """What goes on with the training of a model. reference: as `memoir restore --model` takes it. overrides: new values.

    Raises UserError for a model that was not trained in its store, and for a value that would make another training of it.
    """
    before = training_of(reference, runs, store)
    keys = [each.partition("=")[0] for each in overrides]
    for key in keys:
        section, _, rest = key.partition(".")
        if section == "training" and rest not in ("seed", "portable"):
            continue
        if section != "optimisation" or rest.partition(".")[0] not in MAY_CHANGE:
            raise UserError(
                f"--set {key}: a run that goes on keeps it; what may change is training, without seed and portable, and of "
                f"optimisation {', '.join(MAY_CHANGE)}. `memoir train --from` starts another run from these weights"
            )
    if not any(key.partition(".")[2].partition(".")[0] == "length" for key in keys):
        raise UserError(
            f"{reference}: has trained its {before.step:,} steps; say how far it goes on, with "
            f"--set optimisation.length.steps={2 * before.step}, or length.epochs where the recipe counts those"
        )
    return Continued(before.recipe, [*before.overrides, *overrides], lambda recipe: _start(before, recipe))


def _start(before: Training, recipe: Recipe) -> Start:
    """The last checkpoint of a run as the first one of another, which has this recipe."""
    checkpoints, name = Checkpoints(before.place, keep_last=1, keep_best=0), Checkpoints.name(before.step)
    where = f"{before.place.uri}/{name}"
    with TemporaryDirectory(prefix="memoir-") as folder:
        try:
            checkpoints.fetch(name, Path(folder))
        except UserError as error:
            raise UserError(f"{error}; the run before cannot go on without it") from None
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        sums = before.place.read(f"{name}/{SUMS}", SMALL)
    _check(recipe, files, where)
    files["recipe.json"] = recipe.model_dump_json(indent=1).encode()
    sha256 = hashlib.sha256(sums).hexdigest()
    weights = hashlib.sha256(files[WEIGHTS]).hexdigest()
    kept = {f"{name}/{file}": data for file, data in files.items()}
    listed = "".join(f"{hashlib.sha256(data).hexdigest()}  {file}\n" for file, data in files.items())
    kept |= {f"{name}/{SUMS}": listed.encode(), GOES_ON: sha256.encode()}
    return Start(kept, sha256, printable(where), weights, step=before.step)


def _check(recipe: Recipe, files: dict[str, bytes], where: str) -> None:
    """Raise UserError unless the recipe goes on from this checkpoint."""
    mend = "train it again"
    saved = read_document(files["recipe.json"], SavedRecipe, f"{where}/recipe.json", mend)
    try:  # with the values of keys that its version of memoir did not have
        was = type(recipe).model_validate(saved).model_dump(mode="json")
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(
            f"{where}: its recipe is of another version of memoir ({key}); start from it with --from"
        ) from None
    state = read_document(files["state.json"], State, f"{where}/state.json", mend)
    now = json.loads(recipe.model_dump_json())
    changed = [
        f"{section}.{key}: {_told(was.get(section), key)} there, {_told(now.get(section), key)} here"
        for section in ("model", "objective", "data", "optimisation")
        for key in sorted({*(was.get(section) or {}), *(now.get(section) or {})})
        if (was.get(section) or {}).get(key) != (now.get(section) or {}).get(key)
        and not (section == "optimisation" and key in MAY_CHANGE)
    ]
    if changed:
        raise UserError(f"{where}: the recipe here is another one than it was trained with: {some(changed)}")
    length = recipe.optimisation.length
    unit, wanted, trained = (
        ("steps", length.steps, state["step"])
        if length.steps is not None
        else ("epochs", length.epochs or 0, state["position"]["epoch"] + 1)  # those that it has begun
    )
    if wanted <= trained:
        raise UserError(f"optimisation.length: {wanted:,} {unit}, and {where} has trained {trained:,}; give more")


def _told(section: dict[str, Any] | None, key: str) -> Any:
    return (section or {}).get(key, "none")
