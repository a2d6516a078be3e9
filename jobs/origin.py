"""What the name of a run is made of, and how that differs from the other runs of its recipe in the store."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from jobs.documents import SMALL, read_document
from jobs.recipe import Recipe
from jobs.source import digest as source_digest
from jobs.source import files, is_own
from pipeline.errors import UserError, printable, some
from pipeline.shards.format import file_sha256
from pipeline.storage import Storage

FILE = "run.json"
CODE = (
    "jobs/arithmetic.py",
    "jobs/training/compiler.py",
    "jobs/training/gradients.py",
    "jobs/training/loop.py",
    "jobs/training/optimiser.py",
    "jobs/models/batchnorm.py",
    "jobs/models/collective.py",
    "jobs/models/contrastive.py",
    "jobs/models/convolution.py",
    "jobs/models/dynamic.py",
    "jobs/models/elementwise.py",
    "jobs/models/fp32.py",
    "jobs/models/kmeans.py",
    "jobs/models/node_memory.py",
    "jobs/models/padding.py",
    "jobs/models/preactivation.py",
    "jobs/models/timelapse_profiles.py",
    "jobs/models/vgg.py",
    "jobs/models/whitening.py",
    "pipeline/degradations/base.py",
    "pipeline/degradations/chain/__init__.py",
    "pipeline/degradations/chain/amounts.py",
    "pipeline/degradations/chain/kernels.py",
    "pipeline/degradations/chain/steps.py",
    "pipeline/degradations/colour.py",
    "pipeline/degradations/jpeg.py",
    "pipeline/degradations/noise.py",
    "pipeline/degradations/orientation.py",
    "pipeline/depth.py",
    "pipeline/keyed.py",
    "pipeline/loading/loader.py",
    "pipeline/loading/mixture.py",
    "pipeline/loading/pool.py",
    "pipeline/loading/symmetry.py",
    "pipeline/normal.py",
    "pipeline/sampling/negatives.py",
    "pipeline/sampling/order.py",
    "pipeline/sampling/patches.py",
    "pipeline/shards/shard_set.py",
)
# and for a network of one's own: what it is given, and where terms of its objective come from
OWN = ("jobs/models/memorynet.py", "jobs/models/objective.py", "jobs/models/own.py")
# and where a recipe says by what its weights are chosen
CHOOSING = tuple(
    f"jobs/evaluation/{name}.py" for name in ("benchmark", "metrics", "protocols", "scoring", "validating")
)


def origin(recipe: Recipe, shards: str, started_from: str | None = None) -> dict[str, Any]:
    """What the weights of a run depend on: the recipe (all but how the run is carried out), the shards' digest, and code.

    started_from: the sha256 of the weights it starts from, see `jobs.training.start`; None: from its initialisation.
    """
    root = Path(__file__).parents[1]
    name = recipe.model.name
    code = [*CODE, *(OWN if is_own(name) else [f"jobs/models/{name}.py"])]
    code += [] if recipe.validation is None else CHOOSING
    paths = {path: root / path for path in code} | (files(name) if is_own(name) else {})
    sections = {"model", "objective", "data", "optimisation", "validation"}
    return recipe.model_dump(mode="json", include=sections) | {
        "seed": recipe.training.seed,
        "portable": recipe.training.portable,
        "shards": shards,
        **({"started_from": started_from} if started_from else {}),
        "code": {name: file_sha256(path) for name, path in paths.items()},
    }


def own_source(made_of: dict[str, Any]) -> str | None:
    """The digest of the source files in an `origin`, for a network of one's own; None for memoir's models."""
    if not is_own(made_of["model"]["name"]):
        return None
    return source_digest(
        {path: sha256 for path, sha256 in made_of["code"].items() if path not in (*CODE, *OWN, *CHOOSING)}
    )


def digest(made_of: dict[str, Any]) -> str:
    """The digest of an `origin`, 12 hex digits."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]


def begin(store: Storage, name: str, made_of: dict[str, Any]) -> str | None:
    """Write a run's origin into its folder, before anything is computed: it shows at once if a store takes no files.

    Returns a line if the run is new and the store has others of its recipe `name`: why its name differs from the one that is
    most like it. Raises UserError and OSError for a store that cannot be written.
    """
    run = f"{name}-{digest(made_of)}"
    pattern = re.compile(rf"runs/({re.escape(name)}-[0-9a-f]{{12}})/{re.escape(FILE)}")
    there = [found[1] for each in store.names(f"runs/{name}-") if (found := pattern.fullmatch(each))]
    others: dict[str, list[str]] = {}
    for other in () if run in there else there:
        try:
            where = f"runs/{other}/{FILE}"
            theirs = read_document(store.read(where, SMALL), dict[str, Any], f"{store.uri}/{where}", "remove it")
        except (UserError, FileNotFoundError):  # damaged, or just removed: no reason not to train
            continue
        others[other] = differences(theirs, made_of)
    store.write(f"runs/{run}/{FILE}", (json.dumps(made_of, indent=1) + "\n").encode())
    if not others:
        return None
    nearest = min(others, key=lambda other: (len(others[other]), other))
    more = f", and {len(others) - 1} others of the recipe" if len(others) > 1 else ""
    return printable(f"{run}: a new run beside {nearest}{more}, for there are other {some(others[nearest], 8)}")


def other_run(recipe: Recipe, pointer: dict[str, Any], store: Storage) -> str | None:
    """How the run that a recipe and the code here make of a pointer's dataset differs from the pointer's run; None: it does not.

    pointer: checkpoint.json. The store has what the pointer's run is made of.
    """
    ours, run = origin(recipe, pointer["samples"], pointer.get("started_from")), pointer["run"]
    if run == f"{pointer['recipe']}-{digest(ours)}":
        return None
    where = f"runs/{run}/{FILE}"
    try:
        changed = differences(
            read_document(store.read(where, SMALL), dict[str, Any], f"{store.uri}/{where}", "remove it"), ours
        )
    except (UserError, FileNotFoundError):  # damaged or removed; that the names differ is known
        changed = []
    return (
        f"other {some(changed, 8)}" if changed else f"another recipe or other code, and {store.uri} does not say which"
    )


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """How one origin differs from the other: keys of the recipe with both values, files of code, the shards."""
    a, b = _flat(theirs), _flat(ours)
    changed = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    said = []
    for path in changed:
        section, key = path[0], ".".join(path)
        if section in ("code", "shards"):
            said.append(f"code: {'.'.join(path[1:])}" if section == "code" else "shards")
        else:
            said.append(f"{key}: {a.get(path, 'none')} there, {b.get(path, 'none')} here")
    return said


def _flat(tree: dict[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, (*above, key)) if isinstance(value, dict) else {(*above, key): value}
    return flat
