"""W&B and MLflow, the real packages, offline; and the pictures of TensorBoard."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jobs.training import trackers as module
from jobs.training.board import Board
from jobs.training.trackers import Trackers, check_installed, variables
from pipeline.errors import UserError
from pipeline.storage import storage

RECIPE = {"model": {"name": "memnet", "channels": 4}, "optimisation": {"lr": 0.001, "length": {"steps": 9}}}
RECORDS = [{"step": 10, "epoch": 0, "loss": 2.5, "psnr": 29.0}, {"step": 20, "val_psnr": 30.5, "quarantined": ["x"]}]


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    yield tmp_path
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # it reads its variables once in a process


def tracked(*names: str, run: str = "tiny-0123456789ab", **changes: object) -> list[str]:
    told: list[str] = []
    trackers = Trackers(names, run, RECIPE | changes, told.append)
    for record in RECORDS:
        trackers.add(record)
    trackers.finish()
    return told


def test_the_process_of_wandb_is_waited_for_where_its_server_does_not_answer(offline, monkeypatch):
    import wandb

    told: list[str] = []
    trackers = Trackers(["wandb"], "tiny-0123456789ab", RECIPE, told.append)
    ended, teardown = [], wandb.teardown
    monkeypatch.setattr(wandb, "teardown", lambda: ended.append(teardown()))

    def unanswered() -> None:
        raise TimeoutError("no answer in 90 s")

    monkeypatch.setattr(trackers.open["wandb"].run, "finish", unanswered)
    trackers.finish()
    assert len(ended) == 1
    assert told == ["wandb is left out from here on: no answer in 90 s; all records are in metrics.jsonl"]


def test_mlflow_has_the_records_and_a_run_that_continues_is_the_same_run(offline):
    assert tracked("mlflow", training={"workers": 2}) == []
    assert tracked("mlflow", training={"workers": 1, "until": 20}) == []  # it may be carried out otherwise
    import mlflow

    (found,) = mlflow.search_runs(experiment_names=["memoir"], output_format="list")
    assert found.info.run_name == "tiny-0123456789ab"
    assert found.data.metrics == {"epoch": 0.0, "loss": 2.5, "psnr": 29.0, "val_psnr": 30.5}
    assert found.data.params["optimisation.length.steps"] == "9"
    assert (found.data.params["training.workers"], found.data.params["training.until"]) == ("2", "20")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "val_psnr")
    assert {each.step for each in history} == {20}


def test_wandb_has_the_records(offline):
    assert tracked("wandb") == []
    (folder,) = offline.glob("wandb/offline-run-*-tiny-0123456789ab")
    (file,) = folder.glob("*.wandb")
    held = file.read_bytes()
    for text in (b"val_psnr", b"30.5", b"memnet"):
        assert text in held


def test_a_tracker_that_fails_is_left_out_with_one_line_and_the_others_go_on(offline, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    told = tracked("mlflow", "wandb")
    assert len(told) == 1
    assert told[0].startswith("mlflow is left out from here on: ")
    assert told[0].endswith("; all records are in metrics.jsonl")
    assert len(list(offline.glob("wandb/offline-run-*"))) == 1


def test_a_worker_elsewhere_is_given_where_a_tracker_is_and_no_secret(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    given = {"WANDB_MODE": "offline", "WANDB_DIR": "/a b", "MLFLOW_TRACKING_URI": "http://host:5000/x?y=1"}
    secret = {"WANDB_API_KEY": "k" * 40, "MLFLOW_TRACKING_PASSWORD": "p", "MLFLOW_TRACKING_TOKEN": "t"}
    for name, value in (given | secret).items():
        monkeypatch.setenv(name, value)
    assert variables(["wandb", "mlflow"]) == given
    assert variables(["wandb"]) == {"WANDB_MODE": "offline", "WANDB_DIR": "/a b"}
    assert variables([]) == {}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:p@host/db")
    assert variables(["mlflow"]) == {}


def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^training\.track: wandb is not installed; `pip install 'memoir\[wandb\]'`$"):
        check_installed(["wandb"])


def test_tensorboard_has_the_pictures_of_each_validation(tmp_path):
    board = Board(storage(str(tmp_path)), 0)
    pixels = np.arange(4 * 12, dtype=np.uint8).reshape(4, 12, 1)
    for record in RECORDS:
        board.add(record, {"one": pixels})
    board._writer.close()
    (file,) = tmp_path.glob("tensorboard/*")
    found = [
        (event.step, value.tag, value.image.width)
        for event in events(file.read_bytes())
        for value in event.summary.value
    ]
    assert [(step, tag, width) for step, tag, width in found if width] == [(20, "one", 12)]
    assert {tag for _, tag, width in found if not width} == {"epoch", "loss", "psnr", "val_psnr"}


def events(data: bytes) -> list[Event]:
    """The events of a TensorBoard file."""
    found, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        found.append(Event.FromString(data[at + 12 : at + 12 + length]))
        at += 16 + length
    return found
