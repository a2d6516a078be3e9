"""Which scenes and frames a time-lapse task takes, and the tasks of the paper's Table VI."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.degradations.scene_choice import chosen_frames, chosen_scenes
from pipeline.errors import UserError
from pipeline.raw.manifest import SCHEMA
from pipeline.shards.plan import plan, unused
from pipeline.task import Task, read_task

SCENES = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.sampled_from(["u", "v", "w", None]), min_size=1)


@given(SCENES, st.integers(1, 20), st.integers(0, 3))
def test_so_many_scenes_are_taken_of_as_many_videos_as_there_are(scenes, number, seed):
    taken = chosen_scenes(scenes, number, seed=seed)
    assert taken <= scenes.keys()
    assert len(taken) == min(number, len(scenes))
    of = [scenes[scene] for scene in taken if scenes[scene] is not None]
    several = {video for video in of if of.count(video) > 1}
    untouched = {v for scene, v in scenes.items() if scene not in taken and (v is None or v not in of)}
    assert not (several and untouched)  # no second one while a video, or a scene by itself, has none


@given(SCENES, st.integers(1, 20), st.data())
def test_a_scene_that_goes_displaces_no_scene_of_other_videos(scenes, number, data):
    alone = dict.fromkeys(scenes)
    gone = data.draw(st.sampled_from(sorted(scenes)))
    rest = {scene: None for scene in alone if scene != gone}
    if rest:
        assert chosen_scenes(alone, number) - {gone} <= chosen_scenes(rest, number)


@given(
    st.lists(st.text("0123456789abcdef", min_size=4, max_size=4), min_size=1, unique=True),
    st.integers(1, 40),
    st.data(),
)
def test_so_many_frames_are_taken_and_one_that_goes_displaces_none(frames, number, data):
    taken = chosen_frames(frames, number, scene="s")
    assert taken == sorted(set(taken))
    assert len(taken) == min(number, len(frames))
    gone = data.draw(st.integers(0, len(frames) - 1))
    rest = frames[:gone] + frames[gone + 1 :]
    still = {rest[i] for i in chosen_frames(rest, number, scene="s")}
    assert {frames[i] for i in taken} - {frames[gone]} <= still


def test_seed_and_scene_draw_others():
    names = [f"{i:04}" for i in range(60)]
    scenes = dict.fromkeys(names)
    assert chosen_scenes(scenes, 20) == chosen_scenes(scenes, 20)
    assert chosen_scenes(scenes, 20) != chosen_scenes(scenes, 20, seed=1)
    first = chosen_frames(names, 20, scene="s")
    assert first != chosen_frames(names, 20, scene="s", seed=1)
    assert first != chosen_frames(names, 20, scene="t")


# tasks


def frame(dataset: str, scene: str, group: str, number: int) -> dict:
    key = f"{group}-{number}"
    sizes = {"width": 256, "height": 256, "channels": 3, "bit_depth": 8}
    names = {"dataset": dataset, "split": "train", "key": key, "role": "frame", "group": group, "scene": scene}
    sha256 = hashlib.sha256(f"{dataset}/{key}".encode()).hexdigest()
    return {
        **dict.fromkeys(SCHEMA.names),
        "path": f"{dataset}/{key}.png",
        "sha256": sha256,
        **sizes,
        **names,
        "frame": number,
    }


def scene_frames(task: Task, rows: list[dict]) -> dict[str, int]:
    """How many frames each scene has in the task's shards."""
    table = pa.Table.from_pylist(rows, SCHEMA)
    return {group.key: len(group.files) for shard in plan(table, task) for group in shard.groups}


# videos of 3 places, which have 2 frames more than are taken, and scenes that have one frame less
SPA = [
    frame("SPA-scenes", f"v{v}", f"v{v}-{p}-0", n) for v in range(180) for p in range(3) for n in range(32 if p else 29)
]
TIMELAP = [frame("TimeLap", f"s{s}", f"s{s}", n) for s in range(186) for n in range(30)]


def test_the_tasks_of_table_vi_have_its_scenes():
    all_of_it = scene_frames(read_task("timelap"), TIMELAP)
    assert (len(all_of_it), set(all_of_it.values())) == (186, {30})
    some = scene_frames(read_task("timelap-170"), TIMELAP)
    assert (len(some), set(some.values())) == (170, {30})
    assert some.keys() < all_of_it.keys()
    real = scene_frames(read_task("timelapse-spa"), SPA)
    assert len(real) == len({key.split("-")[3] for key in real}) == 170  # one place of each video
    assert set(real.values()) == {29, 30}
    both = scene_frames(read_task("timelapse-both"), SPA + TIMELAP)
    assert both == real | all_of_it


def test_what_is_not_taken_is_told():
    table = pa.Table.from_pylist(TIMELAP, SCHEMA)
    task = read_task("timelap-170")
    found = unused(table, np.arange(len(TIMELAP)), task)
    assert set(found["reason"].to_pylist()) == {"not among the scenes and frames that the task takes"}
    alone = pa.Table.from_pylist([TIMELAP[0]], SCHEMA)
    with pytest.raises(UserError, match="the only frame of its scene"):
        plan(alone, read_task("timelap"))


def test_a_frame_that_cannot_be_used_is_not_one_of_those_that_are_taken():
    task = read_task("timelap").model_dump(mode="json")
    task["degradation"] |= {"frames": 5, "scenes": 3}
    rows = [dict(row) for row in TIMELAP[: 30 * 20]]
    before = scene_frames(Task.model_validate(task), rows)
    for row in rows:
        if row["frame"] >= 4 or row["group"] == sorted(before)[0].split("-")[-1]:
            row["bit_depth"] = 16
    after = scene_frames(Task.model_validate(task), rows)
    assert set(before.values()) == {5}
    assert (len(after), set(after.values())) == (3, {4})
    assert len(after.keys() & before.keys()) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scenes": 0}, "greater than or equal to 1"),
        ({"scenes": {"TimeLap": 0}}, "greater than or equal to 1"),
        ({"scenes": "all"}, "scenes"),
        ({"frames": 1}, "greater than or equal to 2"),
        ({"scenes": {"Timelap": 9}}, "'Timelap' is no data set of splits; did you mean 'TimeLap'"),
    ],
)
def test_a_choice_of_nothing_is_refused(changes, words):
    task = read_task("timelap").model_dump(mode="json")
    with pytest.raises(ValueError, match=words):
        Task.model_validate({**task, "degradation": task["degradation"] | changes})


def test_with_a_target_a_choice_has_a_seed_too():
    task = read_task("timelap-mean").model_dump(mode="json")
    degradation = task["degradation"] | {"scenes": 170, "seed": 1}
    assert len(scene_frames(Task.model_validate({**task, "degradation": degradation}), TIMELAP)) == 170
