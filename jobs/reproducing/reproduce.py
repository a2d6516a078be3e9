"""Train a published version anew and compare what comes of it."""

from pathlib import Path
from typing import Any, NamedTuple

from jobs.documents import SMALL, Pointer, read_document
from jobs.evaluation.scores import read_scores
from jobs.project import without_credentials
from jobs.reproducing import compare
from jobs.reproducing.compare import Row
from jobs.reproducing.data import bring_data, bring_tests
from jobs.reproducing.original import Original, read_original, trusted_repository
from jobs.reproducing.place import Place, claim, clone, environment
from jobs.training.record import recorded
from pipeline.console import tell
from pipeline.errors import UserError, some
from pipeline.git import git
from pipeline.storage import storage

FOLDER = Path("reproduced")  # where a reproduction goes by default


class Reproduction(NamedTuple):
    """rows: of the table. ended: why it went no further, if it did not. folder: where all of it is."""

    rows: list[Row]
    ended: str | None
    folder: Path

    @property
    def holds(self) -> bool:
        """Whether everything was compared that must be equal, and is."""
        return self.ended is None and all(row.holds for row in self.rows)

    @property
    def first(self) -> Row | None:
        """The first row that differs, whether it must be equal or not."""
        return next((row for row in self.rows if not row.equal), None)

    def verdict(self) -> str:
        """The last line: what came of it, and the first difference with the values on both sides."""
        first = self.first
        said = (
            "" if first is None else f"; the first that differs: {first.stage}: {first.there} there, {first.here} here"
        )
        if not self.holds:
            return "not reproduced" + said + (f"; {self.ended}" if self.ended else "")
        if all(row.equal for row in self.rows if row.stage == "weights"):
            return "reproduced: the same weights, bit for bit" + said
        return "reproduced: the scores are equal within the tolerance, and the weights need not be" + said


def reproduce(
    version: str,
    store: str,
    *,
    into: Path | None = None,
    repository: str | None = None,
    here: bool = False,
    trust: bool = False,
    anyway: bool = False,
) -> Reproduction:
    """Train a published version anew in a folder of its own and compare it, stage by stage; the first that must be equal and is
    not ends it.

    version, store: see `read_original`. into: the folder; reproduced/<recipe>-<version> by default. repository: the URL to clone
    instead of that of the version. here: use the environment that is running. trust: run code of a repository that is not the
    origin of the current directory's clone. anyway: go on though the training ran with changes that were not committed.
    Nothing is written but below the folder; the same call goes on with what a killed one left there. Raises UserError for what
    cannot be reproduced, in one line.
    """
    original = read_original(version, store)
    url = trusted_repository(original, repository, trust)
    if not original.clean and not anyway:
        changes = original.provenance.get("diff")
        what = f"with changes that were not committed (sha256 {changes[:16]})" if changes else "with unknown changes"
        raise UserError(
            f"{original.uri}: was trained {what}, which are in no repository, so its bytes cannot be had again; --anyway trains "
            "the commit without them and compares the scores"
        )
    root = (into or FOLDER / f"{original.name}-{original.number}").absolute()
    with claim(root, original, url):
        tell(f"{root}: runs the code of {without_credentials(url)} at {original.commit}")
        clone(root, original, url)
        place = environment(root, here=here)
        rows: list[Row] = []
        ended = _compared(place, original, rows)
    return Reproduction(rows, ended, root)


def _compared(place: Place, original: Original, rows: list[Row]) -> str | None:
    """Add the rows, stage by stage. Returns why it ended before the last one, or None."""
    told = original.provenance
    changed = place.changed()
    here = f"{place.head()[:12]}{f', changed: {some(changed)}' if changed else ''}"
    rows.append(compare.same("code", f"{original.commit[:12]}{'' if original.clean else ', with changes'}", here))
    if changed or place.head() != original.commit:
        return "the clone is not the commit; `git stash` in it, or remove the folder"
    if not original.clean:
        rows[-1] = Row("code", rows[-1].there, here, False, must=False)
    rows += compare.libraries(told.get("libraries", {}), place.libraries)
    for task, digest in original.datasets.items():
        stage = "data" if len(original.datasets) == 1 else f"data {task}"
        rows.append(compare.same(stage, digest, bring_data(place, original.commit, task, digest)))
        if not rows[-1].equal:
            return "no data of that digest can be had or built"
    recipe = _recipe_file(place.clone, original.name)
    run, resolved = place.plan(recipe, original.overrides())
    found = compare.recipes(original.recipe, resolved)
    rows += found
    if not all(row.equal for row in found):
        return "the recipe of the commit is another one"
    rows.append(compare.same("run", told.get("run"), run, must=original.clean))
    if not rows[-1].holds:
        return "the same recipe and data, so other code"
    pointer = _train(place, original, recipe)
    _, machine = recorded(storage(f"{place.store}/runs/{run}"))
    rows.append(compare.machines(told.get("machine"), machine, (told.get("precision"), pointer.get("precision"))))
    exact = compare.bits_must_be_equal(rows, original.clean, original.recipe)
    weights = compare.same("weights", original.weights, pointer["sha256"], must=exact)
    rows.append(weights)
    if absent := bring_tests(place, resolved):
        rows.append(Row("scores", f"{len(original.scores)} benchmarks", "none", None))
        return f"the test images are not there: {some(absent)}"
    rows += compare.scores(
        original.scores, _scores(place, original, recipe, pointer), exact=exact and bool(weights.equal)
    )
    return None


def _recipe_file(checkout: Path, name: str) -> str:
    """The YAML file of a recipe in the clone. name: it may be that of a variant."""
    tracked = git("ls-files", "-z", place=checkout).decode(errors="surrogateescape").split("\0")
    for base in (name, name.partition("+")[0]):
        if (usual := f"jobs/recipes/{base}.yaml") in tracked:
            return usual
        found = [path for path in tracked if Path(path).name == f"{base}.yaml" and "pipeline/tasks/" not in path]
        if len(found) == 1:
            return found[0]
    raise UserError(f"{checkout}: its commit has no recipe {name}.yaml, or several; it cannot be reproduced")


def _train(place: Place, original: Original, recipe: str) -> dict[str, Any]:
    """Train, or find that it was; returns the pointer to the checkpoint."""
    values = [f"--set={each}" for each in original.overrides()]
    place.run("memoir", "train", recipe, "--data=data", f"--store={place.store}", *values)
    path = place.clone / "runs" / original.name / "checkpoint.json"
    try:
        pointer: dict[str, Any] = read_document(path.read_bytes()[:SMALL], Pointer, str(path), "run the same again")
    except FileNotFoundError:
        raise UserError(f"{path}: not there; the commit's memoir has put the run elsewhere") from None
    return pointer


def _scores(place: Place, original: Original, recipe: str, pointer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of what was trained, measured unless they are there."""
    folder = place.clone / "runs" / original.name
    try:
        there = read_scores(folder, "run the same again")
        if all(row.get("weights") == pointer["sha256"] for row in there.values()):
            return there
    except (FileNotFoundError, UserError):  # not measured yet, or half
        pass
    values = original.name.partition("+")[2] if not recipe.endswith(f"/{original.name}.yaml") else ""
    place.run("memoir", "evaluate", f"--model={recipe}{f'+{values}' if values else ''}", f"--store={place.store}")
    return read_scores(folder, "run the same again")
