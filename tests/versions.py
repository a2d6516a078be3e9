"""Published versions whose files say something else than when they were published, with sums that agree."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml


def altered(
    version: Path, number: str, change: Callable[[dict[str, Any]], object], file: str = "provenance.json"
) -> Path:
    """A copy of a version under another number, with one of its documents changed in place."""
    copy = version.with_name(number)
    shutil.copytree(version, copy)
    yaml_file = file.endswith(".yaml")
    text = (copy / file).read_text()
    document = yaml.safe_load(text) if yaml_file else json.loads(text)
    change(document)
    (copy / file).write_text(yaml.safe_dump(document) if yaml_file else json.dumps(document))
    names = sorted(path.name for path in copy.iterdir() if path.name != "SHA256SUMS")
    sums = "".join(f"{hashlib.sha256((copy / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (copy / "SHA256SUMS").write_text(sums)
    return copy
