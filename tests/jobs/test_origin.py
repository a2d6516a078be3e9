import errno
import json
import os

import pytest
from ray import exceptions
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from jobs.origin import FILE, begin, differences, digest
from jobs.recipe import read_recipe
from jobs.training.ray_train import Failure, Kind, classify, told
from pipeline.errors import UserError
from pipeline.storage import storage

OURS = {
    "model": {"name": "memnet", "channels": 8},
    "optimisation": {"lr": 0.1, "length": {"steps": 10}},
    "seed": 0,
    "shards": "aa",
    "code": {"jobs/training/loop.py": "11", "pipeline/loading/loader.py": "22"},
}


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    return storage(request.getfixturevalue("s3") if request.param == "bucket" else str(tmp_path / "store"))


def test_the_first_run_of_a_recipe_and_one_that_continues_say_nothing(store):
    assert begin(store, "tiny", OURS) is None
    begin(store, "tiny-other", OURS | {"seed": 1})  # whose name begins alike
    assert begin(store, "tiny", OURS) is None
    assert json.loads(store.read(f"runs/tiny-{digest(OURS)}/{FILE}")) == OURS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimisation": {"lr": 0.2, "length": {"steps": 10}}}, "optimisation.lr: 0.1 there, 0.2 here"),
        ({"model": {"name": "memnet", "channels": 8, "long_term": False}}, "model.long_term: none there, False here"),
        ({"code": {"jobs/training/loop.py": "33", "pipeline/loading/loader.py": "22"}}, "code: jobs/training/loop.py"),
        ({"shards": "bb"}, "shards"),
        ({"shards": "bb", "seed": 1}, "seed: 0 there, 1 here, shards"),
    ],
)
def test_a_new_run_beside_an_older_one_says_what_differs(tmp_path, change, said):
    store, new = storage(str(tmp_path)), OURS | change
    begin(store, "tiny", OURS)
    line = begin(store, "tiny", new)
    assert line == f"tiny-{digest(new)}: a new run beside tiny-{digest(OURS)}, for there are other {said}"
    assert begin(store, "tiny", new) is None  # told once


def test_of_several_runs_the_most_similar_is_compared_and_a_damaged_one_is_passed_over(tmp_path):
    store = storage(str(tmp_path))
    for each in (OURS, OURS | {"seed": 5, "shards": "bb"}):
        begin(store, "tiny", each)
    store.write(f"runs/tiny-0123456789ab/{FILE}", b"[[[")
    line = begin(store, "tiny", OURS | {"seed": 1})
    assert f"beside tiny-{digest(OURS)}, and 1 others of the recipe, for there are other seed: 0 there, 1 here" in line


def test_equal_origins_do_not_differ():
    assert differences(OURS, json.loads(json.dumps(OURS))) == []


def test_a_store_that_takes_no_files_is_told_before_anything_is_computed(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/runs").write_text("a file where the folder should be")
    with pytest.raises(NotADirectoryError):  # which `memoir` tells in one line
        begin(storage(str(tmp_path / "store")), "tiny", OURS)


def test_a_bucket_that_may_only_be_read_is_told_in_one_line(s3, monkeypatch):
    from botocore.exceptions import ClientError

    store = storage(s3)
    refused = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}

    def put_object(**_):
        raise ClientError(refused, "PutObject")

    monkeypatch.setattr(store.client, "put_object", put_object)
    with pytest.raises(UserError, match=r"access denied at .*; these credentials lack the permission$"):
        begin(store, "tiny", OURS)


def failed(*errors: Exception) -> WorkerGroupError:
    return WorkerGroupError("failed", {i: UserExceptionWithTraceback(error, "trace") for i, error in enumerate(errors)})


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (failed(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "store/x")), "store/x: No space left on device"),
        (failed(exceptions.OutOfMemoryError("killed"), exceptions.ActorDiedError()), "the memory of a node was full"),
        (ControllerError(exceptions.OutOfDiskError("full")), "the disk of Ray's folder is full"),
        (ControllerError(exceptions.RuntimeEnvSetupError("no pip")), "prepare a worker's environment: "),
        (exceptions.ActorUnavailableError("away", None), "workers or their nodes were lost"),
        (exceptions.GetTimeoutError("late"), "Ray does not answer or has no room (late)"),
        (exceptions.ObjectStoreFullError("full"), "Ray's object store is full"),
    ],
)
def test_whatever_of_rays_ends_training_is_one_line(tmp_path, error, line):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    training = read_recipe(str(tmp_path / "tiny.yaml")).training
    said = told(classify(error), "tiny-1", storage(str(tmp_path)), training)
    assert line in said
    assert "\n" not in said


@pytest.mark.parametrize("error", [failed(ValueError("a defect")), ControllerError(KeyError("a defect"))])
def test_a_defect_that_ends_training_is_none(error):
    assert classify(error) == Failure(Kind.DEFECT)


RECIPE = """
model: {name: memnet, memory_blocks: 2, recursions: 1, channels: 4}
data: {task: tiny, patch: 12, stride: 8, batch: 10}
optimisation: {optimiser: adam, lr: 0.1, schedule: cosine, length: {steps: 20}}
training: {}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
"""
