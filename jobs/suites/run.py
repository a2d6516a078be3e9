"""Run a suite, and leave its result in a folder of its own."""

import json
import shutil
from pathlib import Path

from jobs.evaluation.published import Table, suites
from jobs.report.results import Result
from jobs.suites.places import Places
from jobs.suites.variants import Scale
from pipeline.errors import UserError
from pipeline.files import write_bytes


def run_suite(name: str, places: Places, model: str | None, scale: Scale | None, out: Path) -> Result:
    """The table or figure of this name; writes out/<name>/result.json and what else there is of it.

    model, scale: see jobs.suites.tables.run_table. Raises UserError for what cannot be computed here.
    """
    suite = suites()[name]
    folder = out / name
    if folder.exists() and not (folder / "result.json").is_file() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds other files than a suite's, which would be lost; name another --out")
    paper = name.partition("-")[0]
    said = {"suite": name, "paper": paper, "title": suite.title, "section": suite.section, "caption": suite.caption}
    if isinstance(suite, Table):
        from jobs.suites.tables import run_table

        found = run_table(suite, places, model, scale)
        files: dict[str, bytes] = {}
        result = Result(**said, grids=found.grids, ran=found.ran, lacking=found.lacking, notes=found.notes)
    else:
        from jobs.suites.figures.draw import draw

        drawn = draw(name, suite, places, model, scale)
        files = drawn.files
        notes = [suite.note] if suite.note else []
        result = Result(**said, ran=drawn.ran, lacking=drawn.lacking, notes=notes, files=sorted(files))
    shutil.rmtree(folder, ignore_errors=True)
    for each, data in files.items():
        write_bytes(folder / each, data)
    write_bytes(folder / "result.json", (json.dumps(result.model_dump(mode="json"), indent=1) + "\n").encode())
    return result
