"""What a published version says of itself, as far as it is needed to train it anew."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from jobs.documents import Provenance, read_document
from jobs.evaluation.scores import Metrics
from jobs.project import full_url, repository_url, without_credentials
from jobs.restoring.checkpoint import AGAIN, WEIGHTS, find_version, version_recipe
from jobs.source import is_own
from jobs.variant import NUMBERS
from pipeline.errors import UserError


@dataclass(frozen=True)
class Original:
    """A version. uri: its folder in the store. number: its name, 12 hex digits. commit: the training's.

    sums: the sha256 of all that it consists of. weights: that of model.safetensors. recipe: resolved, as it was trained.
    scores: by <data set>/<benchmark>, as in metrics.json. provenance: see `jobs.documents.Provenance`; it has a task.
    """

    uri: str
    number: str
    commit: str
    sums: str
    weights: str
    recipe: dict[str, Any]
    scores: dict[str, dict[str, Any]]
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """The recipe's name, with the values of a variant."""
        return str(self.provenance["recipe"])

    @property
    def datasets(self) -> dict[str, str]:
        """The digests of the built data sets, by task; that of `data.task` first."""
        data = self.provenance["data"]
        return {str(data["task"]): str(data["digest"]), **data.get("mixed_with", {})}

    @property
    def clean(self) -> bool:
        """Whether the training is known to have run the commit as it is."""
        return self.provenance.get("dirty") is False

    def overrides(self) -> list[str]:
        """What `memoir train --set` needs beside the recipe: the values of a variant, and how the run was carried out.

        Trackers are told nothing: there it would be the same run as the version's.
        """
        given = [str(each) for each in self.provenance.get("overrides", [])]
        how = {key: value for key, value in self.recipe["training"].items() if key not in NUMBERS}
        how |= {"track": []} if "track" in how else {}
        return [*given, *(f"training.{key}={json.dumps(value, default=str)}" for key, value in how.items())]


def read_original(version: str, store: str) -> Original:
    """Read and check a version. version: RECIPE/VERSION, RECIPE@NAME or RECIPE of the store, or a version's folder or URI.

    Raises UserError for one that is not there or damaged, and for one that does not say what it was made of.
    """
    held = find_version(version if "/models/" in version else f"{store.rstrip('/')}/models/{version}")
    uri = held.store.uri
    provenance = read_document(held.read("provenance.json"), Provenance, f"{uri}/provenance.json", AGAIN)
    scores = read_document(held.read("metrics.json"), Metrics, f"{uri}/metrics.json", AGAIN)["scores"]
    where = f"{uri}/provenance.json"
    if provenance.get("imported"):
        raise UserError(f"{where}: it was imported, and not trained here; there is no training to reproduce")
    if start := provenance.get("started_from"):
        raise UserError(
            f"{where}: its training started from other weights, {start['name']}; train it by hand, with `memoir train --from`"
        )
    if not provenance.get("commit"):
        raise UserError(
            f"{where}: does not say from which commit it was trained (an older memoir, or no git); it cannot be reproduced"
        )
    tasks = [provenance["data"].get("task"), *provenance["data"].get("mixed_with", {})]
    if any(not task or "/" in task or task.startswith((".", "-")) for task in tasks):
        raise UserError(f"{where}: does not say of which task its data were built; it cannot be reproduced")
    for each in provenance.get("overrides", []):
        key, _, value = each.partition("=")
        if key == "model" or (key == "model.name" and is_own(value.strip("'\" "))):
            raise UserError(f"{where}: replaces the network by one of its own ({each[:100]}); train it by hand")
    listed = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(held.sums.items()))
    return Original(
        uri=uri,
        number=uri.rsplit("/", 1)[1],
        commit=str(provenance["commit"]),
        sums=hashlib.sha256(listed.encode()).hexdigest(),
        weights=held.sums[WEIGHTS],
        recipe=version_recipe(held),
        scores=scores,
        provenance=provenance,
    )


def trusted_repository(original: Original, given: str | None, trust: bool) -> str:
    """The URL to clone, whose code will be run: the one that is given, or that of the version.

    Raises UserError unless it is that of the current directory's clone, or the user trusts it.
    """
    url = given or original.provenance.get("repository")
    if not url:
        raise UserError(
            f"{original.uri}/provenance.json: does not say from which repository it was trained; name it with --repository URL"
        )
    shown, here = without_credentials(url), repository_url()
    if shown == here:
        return full_url() or url  # with the credentials that this clone has
    if not trust:
        raise UserError(
            f"{original.uri}: to reproduce it is to run the code of {shown} at {original.commit}, which is not the origin of "
            f"the clone that you are in ({here or 'none'}); if you trust it, say --trust-repository"
        )
    return str(url)
