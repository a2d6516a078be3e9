import os
import threading

import pytest

from jobs.restoring.checkpoint import find_version
from jobs.training import resume
from jobs.training.resume import Checkpoints
from pipeline.errors import UserError
from pipeline.storage import Storage, UnavailableError, storage


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path) -> Storage:
    """The folder of a run."""
    return storage(f"{request.getfixturevalue('s3') if request.param == 'bucket' else tmp_path}/runs/one")


def files(step: int) -> dict[str, bytes]:
    return {"model.safetensors": b"weights %d" % step * 100, "state.json": b"%d" % step}


def saved(
    place: Storage, *steps: int, last: int = 2, best: int = 0, scores: dict[int, float] | None = None
) -> Checkpoints:
    checkpoints = Checkpoints(place, keep_last=last, keep_best=best)
    for step in steps:
        known = {at: score for at, score in (scores or {}).items() if at <= step}
        checkpoints.save(step, files(step), known, {"metrics.jsonl": b"%d" % step})
    checkpoints.wait()
    return checkpoints


def steps(place: Storage) -> list[int]:
    """Of all checkpoints of which anything is left."""
    return sorted({int(name[5:13]) for name in place.names("step-")})


def never(line: str) -> None:
    raise AssertionError(line)


def test_what_was_saved_last_is_the_newest(place, tmp_path):
    checkpoints = saved(place, 5, 10)
    assert checkpoints.newest(tmp_path / "copy", never) == "step-00000010"
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == files(10)
    assert place.read("metrics.jsonl") == b"10"


def test_a_run_without_checkpoints_begins_anew(place, tmp_path):
    assert Checkpoints(place, keep_last=1, keep_best=0).newest(tmp_path / "copy", never) is None


def test_the_last_and_the_best_are_kept(place):
    saved(place, 1, 2, 3, 4, 5, 6, last=2, best=2, scores={1: 30.0, 2: 33.0, 3: 31.0, 4: 29.0, 6: 28.0})
    assert steps(place) == [2, 3, 5, 6]


def test_a_score_that_comes_after_its_checkpoint_counts_among_the_best_in_the_end(place):
    checkpoints = saved(place, 1, 2, 3, last=1, best=1, scores={1: 31.0, 2: 30.0})
    assert steps(place) == [1, 3]
    checkpoints.finish(3, {1: 31.0, 2: 30.0, 3: 33.0}, {"metrics.jsonl": b"all of it"})
    assert steps(place) == [3]
    assert place.read("metrics.jsonl") == b"all of it"


def test_the_best_of_an_earlier_process_is_kept_too(place):
    scores = {1: 33.0, 2: 30.0, 3: 31.0}
    saved(place, 1, 2, last=1, best=1, scores=scores)
    saved(place, 3, 4, last=1, best=1, scores=scores)
    assert steps(place) == [1, 4]


def test_what_a_killed_process_left_half_written_is_no_checkpoint_and_goes(place, tmp_path):
    saved(place, 5)
    place.write("step-00000010/model.safetensors", b"half")
    assert Checkpoints(place, keep_last=2, keep_best=0).newest(tmp_path / "copy", never) == "step-00000005"
    saved(place, 15)
    assert steps(place) == [5, 15]


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.sha256"])
@pytest.mark.parametrize("damage", ["truncated", "other", "missing"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(place, tmp_path, name, damage):
    checkpoints = saved(place, 5, 10)
    file = f"step-00000010/{name}"
    whole = place.read(file)
    if damage == "missing" and name != "checkpoint.sha256":
        place.remove(file)
    else:
        place.write(file, {"truncated": whole[: len(whole) // 2 - 20], "other": b"x" + whole, "missing": b""}[damage])
    told: list[str] = []
    assert checkpoints.newest(tmp_path / "copy", told.append) == "step-00000005"
    assert len(told) == 1
    assert "step-00000010" in told[0]
    assert "going back to the checkpoint before it" in told[0]
    saved(place, 10)  # trained anew
    assert checkpoints.newest(tmp_path / "copy", never) == "step-00000010"


def test_a_checkpoint_in_training_is_no_published_version(place):
    saved(place, 5)
    with pytest.raises(UserError, match="half published, or a checkpoint in training; run `memoir publish`"):
        find_version(f"{place.uri}/step-00000005")


def test_a_run_of_which_every_checkpoint_is_damaged_is_one_line(place, tmp_path):
    checkpoints = saved(place, 5, 10)
    for step in (5, 10):
        place.write(f"step-{step:08d}/model.safetensors", b"")
    with pytest.raises(UserError, match="and so is every checkpoint before it; bring one back, or remove") as error:
        checkpoints.newest(tmp_path / "copy", lambda line: None)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_is_written_anew_is_none_until_it_is_whole(tmp_path):
    place = storage(str(tmp_path / "run"))
    saved(place, 5, 10)
    write = place.write

    def killed(name, data):
        if name.endswith("state.json"):
            raise OSError("killed")
        write(name, data)

    place.write = killed
    again = Checkpoints(place, keep_last=2, keep_best=0)
    again.save(10, files(10), {}, {})
    with pytest.raises(OSError, match="killed"):
        again.wait()
    assert again.newest(tmp_path / "copy", never) == "step-00000005"


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path):
    place, gate = storage(str(tmp_path)), threading.Event()
    write = place.write

    def slowly(name, data):
        assert gate.wait(10)
        write(name, data)

    place.write = slowly
    checkpoints = Checkpoints(place, keep_last=2, keep_best=0)
    checkpoints.save(1, files(1), {}, {})
    assert steps(place) == []
    gate.set()
    checkpoints.save(2, files(2), {}, {})  # after the first
    checkpoints.wait()
    assert steps(place) == [1, 2]


def test_a_store_that_does_not_answer_is_tried_again(tmp_path, monkeypatch):
    place, tries = storage(str(tmp_path)), []
    write = place.write

    def refuse(name, data):
        tries.append(name)
        if len(tries) < 4:
            raise UnavailableError("away")
        write(name, data)

    place.write = refuse
    monkeypatch.setattr(resume.time, "sleep", lambda seconds: None)
    checkpoints = saved(place, 1)
    assert checkpoints.newest(tmp_path / "copy", never) == "step-00000001"
    assert len(tries) > 4


def test_what_went_wrong_in_the_background_is_raised_by_the_next_call(tmp_path):
    place = storage(str(tmp_path))
    full = OSError(28, "No space left on device", "model.safetensors")

    def refuse(name, data):
        raise full

    place.write = refuse
    checkpoints = Checkpoints(place, keep_last=2, keep_best=0)
    checkpoints.save(1, files(1), {}, {})
    for call in (checkpoints.wait, checkpoints.check, lambda: checkpoints.save(2, files(2), {}, {})):
        with pytest.raises(OSError, match="No space left") as error:
            call()
        assert error.value is full


def test_patience_with_a_store_has_an_end(tmp_path, monkeypatch):
    place = storage(str(tmp_path))

    def refuse(name, data):
        raise UnavailableError("away")

    place.write = refuse
    monkeypatch.setattr(resume, "PATIENCE", 0.0)
    checkpoints = Checkpoints(place, keep_last=2, keep_best=0)
    checkpoints.save(1, files(1), {}, {})
    with pytest.raises(UnavailableError, match="away"):
        checkpoints.wait()


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    if os.geteuid() == 0:
        (tmp_path / "runs").write_bytes(b"a file where the folder should be")
    else:
        (tmp_path / "runs").mkdir(mode=0o500)
    checkpoints = Checkpoints(storage(f"{tmp_path}/runs/one"), keep_last=1, keep_best=0)
    checkpoints.save(1, files(1), {}, {})
    with pytest.raises(OSError):
        checkpoints.wait()
