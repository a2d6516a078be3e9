"""What a run records of its beginning."""

import json
import os
from pathlib import Path

import pytest
from conftest import TINY_PARAMS, photograph

from jobs.documents import Began, Machine, check_document
from jobs.training.record import began, on_this_machine, recorded
from jobs.training.run import plan_run
from pipeline.errors import UserError
from pipeline.storage import storage

RECIPE = """
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 2}
data: {task: tiny, patch: 12, stride: 8, batch: 2}
optimisation: {optimiser: adam, lr: 0.1, schedule: cosine, length: {steps: 2}}
training: {workers: 1}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
"""


@pytest.fixture
def planned(builder, tmp_path, monkeypatch):
    """A run before it begins, in a project."""
    data = builder("record", {f"train/{i}.png": photograph(i, 20, 20, 1) for i in range(2)}).parent
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(json.dumps(TINY_PARAMS))
    Path("tiny.yaml").write_text(RECIPE)
    return plan_run("tiny.yaml", data=str(data), store="store")


def test_a_run_records_once_who_began_it_and_on_which_data(planned, monkeypatch):
    monkeypatch.setattr("jobs.training.record.author", lambda: "Ada")
    began(planned)
    found, machine = recorded(planned.place)
    assert machine is None
    check_document(found, Began, "began.json", "")
    assert (found["who"], found["codec"], found["data"]) == ("Ada", "raw", str(planned.built.root.resolve()))
    assert found["datasets"]["photos"]["root"] == "photos"
    monkeypatch.setattr("jobs.training.record.author", lambda: "Bob")
    began(planned)
    assert recorded(planned.place)[0]["who"] == "Ada"


def test_the_machine_that_computes_is_recorded_once(planned, monkeypatch):
    import torch

    on_this_machine(planned.place)
    machine = recorded(planned.place)[1]
    check_document(machine, Machine, "machine.json", "")
    assert machine["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert machine["libraries"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    monkeypatch.setattr("platform.python_version", lambda: "2.7")
    on_this_machine(planned.place)
    assert recorded(planned.place)[1] == machine


@pytest.mark.parametrize("name", ["began.json", "machine.json"])
def test_a_damaged_record_is_one_line(tmp_path, name):
    storage(str(tmp_path)).write(name, b"[1]")
    with pytest.raises(UserError, match=rf"{name}: damaged"):
        recorded(storage(str(tmp_path)))


def test_a_variant_has_a_folder_and_a_pointer_of_its_own(planned):
    changed = plan_run(
        "tiny.yaml",
        data=str(planned.built.root.parent),
        store="store",
        overrides=["optimisation.lr=0.5", "training.strict=true"],
    )
    assert (planned.variant, planned.overrides) == ("tiny", [])
    assert (changed.name, changed.variant, changed.overrides) == ("tiny", "tiny+lr=0.5", ["optimisation.lr=0.5"])
    assert changed.run.startswith("tiny-")
    assert changed.run != planned.run


def test_the_server_of_params_yaml_is_used_by_every_command(planned, monkeypatch, cli):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    assert cli("models", "none")[0] == 1
    assert os.environ["AWS_ENDPOINT_URL"] == ""
    with Path("params.yaml").open("w") as file:
        file.write("store: store\nendpoint: http://127.0.0.1:9\ndatasets: {}\ntasks: []\nrecipes: {}\n")
    cli("models", "none")
    assert os.environ["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9"
    Path("params.yaml").write_text("endpoint: ftp://x\nstore: store\ndatasets: {}\ntasks: []\nrecipes: {}\n")
    code, _, err = cli("models", "none")
    assert (code, err.count("\n")) == (1, 1)
    assert "params.yaml:1: endpoint" in err
    Path("params.yaml").write_text("of: another program\n")
    assert "no published models" in cli("models", "none")[2]
