"""The house: no room needs another that needs it, and what a room needs is loaded when it is used."""

import ast
import graphlib
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent


def imports() -> dict[str, set[str]]:
    """Of each module, the modules of the project that it imports, anywhere in it but for type checking."""
    modules = {}
    for path in sorted((*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/**/*.py"))):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = ast.parse(path.read_text())
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, tree in modules.items():
        hints = {
            child
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for child in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node not in hints:
                named = {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
                found[name] |= named or ({node.module} & modules.keys())
    return found


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_no_module_and_no_room_needs_what_needs_it():
    needs = imports()
    assert len(needs) > 90
    list(graphlib.TopologicalSorter(needs).static_order())  # raises CycleError
    rooms = defaultdict(set)
    for module, needed in needs.items():
        rooms[room(module)] |= {room(other) for other in needed} - {room(module)}
    list(graphlib.TopologicalSorter(rooms).static_order())


def test_the_pipeline_knows_nothing_of_the_jobs():
    assert not [
        (a, b) for a, needed in imports().items() for b in needed if a.startswith("pipeline") and b.startswith("jobs")
    ]


def test_a_model_is_imported_without_the_machinery_around_it():
    code = "import sys, jobs.models.memnet; print([n for n in ('ray', 'dvc', 'boto3', 'pyarrow', 'cv2') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
