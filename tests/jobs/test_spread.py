"""Images spread over the workers of Ray: the same bytes, and losses and failures by the image's name."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photograph, untrained_run

from jobs.evaluation import spread as spreading
from jobs.evaluation.benchmark import benchmark
from jobs.evaluation.evaluate import evaluate, evaluate_recipe
from jobs.evaluation.items import File, Item
from jobs.evaluation.scoring import Asked
from jobs.evaluation.spread import Job, libraries, score_there, spread
from jobs.recipe import BenchmarkRun
from jobs.restoring.checkpoint import load_model
from pipeline.cluster import wait_for
from pipeline.errors import UserError
from pipeline.images import write_image
from pipeline.shared_ray import OFFER

N = 7
MEMNET = "{name: memnet, memory_blocks: 1, recursions: 1, channels: 2}"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A project with N photographs, which is the working directory."""
    for i in range(N):
        write_image(tmp_path / f"Kodak/k{i}.png", photograph(i, 48 + 8 * i, 64))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def project(place: Path, model: str = MEMNET) -> Path:
    runs = ", ".join(f"{{benchmark: {name}, data: Kodak}}" for name in ("jpeg-q10", "noise-50", "jpeg-q10"))
    return untrained_run(
        place,
        f"""
model: {model}
data: {{task: photos-jpeg, patch: 31, stride: 21, batch: 12}}
optimisation: {{optimiser: adam, lr: 0.001, schedule: cosine, length: {{steps: 6}}}}
training: {{workers: 1}}
evaluation: {{benchmarks: [{runs}]}}
""",
    )


@pytest.fixture
def cluster(ray_cluster, monkeypatch) -> None:
    """A cluster at hand, of two CPUs."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


@pytest.fixture
def threads():
    """Sets the number of torch's threads here."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def contents(folder: Path) -> dict[str, bytes]:
    names = ("scores.json", "protocols.json", "scores.parquet")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name in names or path.suffix == ".png"
    }


@pytest.mark.parametrize("of_worker", [1, 2])
def test_scores_are_the_same_bytes_on_any_number_of_workers(place, cluster, threads, monkeypatch, of_worker):
    """Two workers at a time where one has one thread, one where it has both CPUs."""
    runs = project(place)
    threads(of_worker)
    evaluate_recipe("tiny.yaml", runs)
    there = contents(runs / "tiny")
    assert len(there) == 3 + 2 * 3 * 2  # two pictures of the two benchmarks that have a name of their own
    address = os.environ.pop("RAY_ADDRESS")
    monkeypatch.setattr(spreading, "connect", lambda *_: pytest.fail("Ray is not at hand"))
    evaluate_recipe("tiny.yaml", runs)
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert contents(runs / "tiny") == there


def asked(place: Path) -> BenchmarkRun:
    return BenchmarkRun(benchmark="jpeg-q10", data=str(place / "Kodak"))


def test_an_image_that_fails_on_a_worker_is_one_line_with_its_name(place, cluster, threads):
    threads(1)
    runs = project(place)
    (place / "Kodak/k3.png").write_bytes(b"x")
    (place / "Kodak/k5.png").write_bytes(b"y")
    with pytest.raises(UserError) as error:  # the first of both, however the workers hurry
        evaluate("tiny.yaml", BenchmarkRun(benchmark="jpeg-q10", data="Kodak"), runs)
    assert re.fullmatch(r"Kodak/k3\.png: not an image[^\n]*", str(error.value))


MORTAL = '''
import os, signal
from pathlib import Path
import torch

class Net(torch.nn.Module):
    """Kills its process when it sees an image of a height: once, or each time."""
    in_channels, size_multiple, receptive_field = 1, 1, 1

    def __init__(self, mark: str, once: bool):
        super().__init__()
        self.mark, self.once = Path(mark), once
        self.by = torch.nn.Parameter(torch.tensor(0.01))

    def forward(self, x):
        if x.shape[2] == 72 and not (self.once and self.mark.exists()):
            with self.mark.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return x + self.by
'''


@pytest.mark.parametrize("once", [True, False])
def test_a_lost_worker_is_tried_again_and_named_if_it_is_lost_each_time(place, cluster, threads, monkeypatch, once):
    threads(1)
    monkeypatch.setattr(spreading, "RETRIES", 1)
    module = f"mortal_{once}".lower()
    (place / f"{module}.py").write_text(MORTAL)
    mark = place / "mark"
    model = f"{{name: '{module}:Net', mark: {mark}, once: {str(once).lower()}}}\nobjective: {{l1: 1.0}}"
    runs = project(place, model)
    try:
        if once:
            row = evaluate("tiny.yaml", asked(place), runs)
            assert mark.read_text() == "x"
            monkeypatch.delenv("RAY_ADDRESS")
            assert evaluate("tiny.yaml", asked(place), runs) == row
        else:
            with pytest.raises(UserError) as error:
                evaluate("tiny.yaml", asked(place), runs)
            assert re.fullmatch(
                rf"{place}/Kodak/k3\.png: a worker of Ray or its node was lost \(\w+\); it was tried 2 times",
                str(error.value),
            )
            assert mark.read_text() == "xx"
    finally:
        sys.modules.pop(module, None)


# when Ray is at hand


def test_no_ray_is_started_or_asked_for_where_it_would_not_pay(place, threads, monkeypatch):
    trained = load_model("tiny.yaml", project(place))
    asked_for = []
    monkeypatch.setattr(spreading, "offered", lambda cpus: asked_for.append(cpus) or "")
    monkeypatch.setattr(spreading, "connect", lambda *_: pytest.fail("started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for cpus, of_worker, asks in ((2, 2, []), (3, 2, []), (4, 2, [4]), (7, 2, [6]), (2, 1, [2])):
        threads(of_worker)
        monkeypatch.setattr(spreading, "available_cpus", lambda cpus=cpus: cpus)
        asked_for.clear()
        assert spread(trained) is None
        assert asked_for == asks
    monkeypatch.undo()
    monkeypatch.delenv(OFFER, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert spread(trained) is None


def test_what_with_ray_offers_is_used(place, threads, monkeypatch, ray_cluster):
    trained = load_model("tiny.yaml", project(place))
    threads(1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(spreading, "offered", lambda cpus: "10.0.0.1:6379")
    monkeypatch.setattr(spreading, "available_cpus", lambda: 2)
    wait_for(2)  # which takes its time to notice that a worker is done
    assert spread(trained) is not None
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 1.0})  # others compute there
    assert spread(trained) is None


# what a worker says


def job(**more) -> Job:
    given = {"sent": [b"k"], "bits": 8, "here": "/nowhere", "threads": 1, "libraries": libraries()}
    return Job(**given | more)


def image(*paths: str):
    return (Asked(0, 0, benchmark("jpeg-q10"), Item("k", tuple(File(Path(path)) for path in paths)), False),)


def test_images_that_a_node_does_not_have_are_one_line(place, monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "node-7")
    for missing in ("Kodak/k1.png", str(place / "Kodak/none.png")):
        told = score_there(job(), image(missing))
        assert told.startswith(f"{missing}: not on node node-7, where a worker of Ray would score it; ")
    there = str(place / "Kodak/k1.png")
    assert score_there(job(), image(there, "gone.png")).startswith("gone.png: not on node")


def test_relative_paths_begin_where_the_command_was_given(place, monkeypatch):
    monkeypatch.chdir("/")
    monkeypatch.setitem(spreading._held, b"k".hex(), lambda lq, tile: lq)
    (scored,) = score_there(job(here=str(place)), image("Kodak/k1.png"))
    assert scored.output == scored.baseline
    assert np.isfinite(scored.output.values["psnr"])
    assert Path.cwd() == Path("/")


def test_other_libraries_on_a_node_are_one_line():
    told = score_there(job(libraries=libraries() | {"numpy": "1.0"}), image("x.png"))
    assert re.fullmatch(r"node \S+ has numpy \S+ for 1\.0, and scores may differ: install the same", told)
