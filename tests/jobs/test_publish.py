"""The store: what is published, what of it is read, and what is refused."""

import hashlib
import json
import os
import shutil
import subprocess
import threading
import uuid
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BEGAN, MACHINE, untrained_run
from safetensors.torch import load_file, save_file
from simplejpeg import decode_jpeg, encode_jpeg
from skimage.data import camera

from jobs.evaluation.scores import write_scores
from jobs.origin import digest, origin
from jobs.publishing.card import card as card_of
from jobs.publishing.promote import promote, promotions
from jobs.publishing.publish import FILES, models, publish
from jobs.recipe import build_model, read_recipe
from jobs.restoring import checkpoint
from jobs.restoring.checkpoint import load_model
from jobs.restoring.tiles import restore_plane
from pipeline.errors import UserError
from pipeline.storage import storage
from pipeline.task import read_task

RECIPE = """
model: {name: memnet, memory_blocks: 2, recursions: 1, channels: 4}
data: {task: photos-jpeg, patch: 31, stride: 21, batch: 12}
optimisation: {optimiser: adam, lr: 0.00001, schedule: cosine, length: {steps: 6}}
training: {workers: 3}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: datasets/Classic5}]}
"""
SCORES = {
    "Classic5/jpeg-q10": {
        "psnr": 28.125,
        "ssim": 0.78125,
        "images": 5,
        "protocol": "gray-float@1 (colour=grey)",
        "baseline": {"psnr": 27.8203, "ssim": 0.75951},
        "paper": {"JPEG": {"psnr": 27.82, "ssim": 0.7595}, "MemNet": {"psnr": 29.69, "ssim": 0.8107}},
    },
    "photos-test/jpeg-q20": {
        "psnr": None,
        "ssim": 1.0,
        "images": 2,
        "protocol": "gray-float@1 (colour=grey)",
        "baseline": {"psnr": 30.5, "ssim": 0.9},
        "paper": {},
    },
}


def train(place: Path, seed: int = 0) -> Path:
    """The files of a trained and evaluated recipe `tiny`; returns the folder of runs."""
    metrics = {"step": 6, "loss": 0.00001, "val_psnr": 27.5}
    return untrained_run(place, RECIPE, seed, metrics=metrics, scores=SCORES)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """The folder of runs in the current directory, a project."""
    monkeypatch.chdir(tmp_path)
    return train(tmp_path)


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path, monkeypatch) -> str:
    """The URI of an empty store."""
    if request.param == "folder":
        return str(tmp_path / "team")
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("server"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"bucket-{uuid.uuid4().hex}"
    storage(f"s3://{name}").client.create_bucket(Bucket=name)
    return f"s3://{name}/team"


# a model that comes with memoir


def test_what_comes_with_memoir_stands_for_a_recipe_that_is_not_trained_here(tmp_path, runs, monkeypatch, capsys):
    trained = load_model("tiny", runs)
    version = publish("tiny", str(tmp_path / "with-memoir"), runs)["version"]
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "with-memoir")
    checkpoint._tell_once.cache_clear()
    capsys.readouterr()
    assert load_model("tiny", runs).uri == trained.uri  # one's own comes first
    assert capsys.readouterr().err == ""
    elsewhere = tmp_path / "elsewhere"
    for _ in range(2):
        model = load_model("tiny", elsewhere)
    assert (model.sha256, model.uri) == (trained.sha256, f"{tmp_path}/with-memoir/models/tiny/{version}")
    said = f"tiny is not trained in {elsewhere}: it is version {version}, which comes with memoir\n"
    assert capsys.readouterr().err == said
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        load_model("tinny", elsewhere)
    with pytest.raises(UserError, match=r"no model 'tiny[+]"):
        load_model("tiny+optimisation.lr=0.1", elsewhere)


def test_the_model_that_comes_with_memoir_is_whole_and_takes_blocks_away(tmp_path):
    assert checkpoint.shipped() == ["memnet-jpeg-cpu"]
    files = [path for path in checkpoint.SHIPPED.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {*FILES, "SHA256SUMS", "latest.json"}
    assert sum(path.stat().st_size for path in files) < 2_000_000
    trained = load_model("memnet-jpeg-cpu", tmp_path / "runs")
    assert trained.task["degradation"]["quality"] == [10, 20]
    target = camera()[100:260, 150:310]
    lq = decode_jpeg(encode_jpeg(np.ascontiguousarray(target[..., None]), 10, "GRAY", colorsubsampling="Gray"), "GRAY")[
        ..., 0
    ]
    errors = []
    for image in (lq, np.rint(restore_plane(trained.model, lq[..., None] / np.float32(255))[..., 0] * 255)):
        errors.append(float(np.square(image - target.astype(np.float64)).mean()))
    assert 10 * np.log10(errors[0] / errors[1]) > 1  # dB


# a version


def test_a_published_model_is_the_trained_one(store, runs):
    published = publish("tiny", store, runs)
    assert published["new"]
    assert published["latest"]
    assert published["uri"] == f"{store}/models/tiny/{published['version']}"
    named = {key: published[key] for key in ("model", "version", "sha256")}
    assert json.loads((runs / "tiny" / "published.json").read_text()) == named
    assert named["model"] == f"models/tiny/{published['version']}"  # whatever the store is called
    trained = load_model("tiny", runs)
    for reference in (published["uri"], f"{store}/models/tiny", f"{store}/models/tiny/"):
        model = load_model(reference, runs)
        assert (model.name, model.uri, model.sha256) == ("tiny", published["uri"], trained.sha256)
        assert model.recipe == trained.recipe
        assert model.task == trained.task
        assert not model.model.training
        x = torch.rand(1, 1, 9, 8)
        assert torch.equal(model.model.restore(x), trained.model.restore(x))


def test_a_version_says_all_that_a_reader_needs(tmp_path, runs):
    version = Path(publish("tiny", str(tmp_path / "team"), runs)["uri"])
    assert {path.name for path in version.iterdir()} == {*FILES, "SHA256SUMS"}
    recipe = read_recipe(str(version / "recipe.yaml"))
    assert recipe.model_dump() == read_recipe(str(tmp_path / "tiny.yaml")).model_dump()
    task = read_task(str(version / "task.yaml"))
    assert task.model_dump(exclude={"shard_bytes"}) == read_task("photos-jpeg").model_dump(exclude={"shard_bytes"})
    metrics = json.loads((version / "metrics.json").read_text())
    assert metrics == {"scores": SCORES, "training": {"step": 6, "loss": 0.00001, "val_psnr": 27.5}}
    card = (version / "card.md").read_text()
    model = load_model("tiny", runs).model
    for part in (
        f"{sum(p.numel() for p in model.parameters()):,} parameters",
        "JPEG compression (quality 10, 20; subsampling 4:2:0), degraded in 2 orientations for training",
        "photos/train",
        "| images / benchmark | metric | degraded input | tiny | as published |",
        "| Classic5/jpeg-q10 | PSNR (dB) | 27.82 | **28.12** | JPEG 27.82, MemNet 29.69 |",
        "| Classic5/jpeg-q10 | SSIM | 0.7595 | **0.7812** | JPEG 0.7595, MemNet 0.8107 |",
        "| photos-test/jpeg-q20 | PSNR (dB) | 30.50 | **identical** |  |",
        "- Classic5/jpeg-q10: 5 images, gray-float@1 (colour=grey)",
        f"memoir restore --model {version} IN OUT",
        "Apache License 2.0. Nothing is said here of a licence of the weights",
    ):
        assert part in card
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=version, check=True, capture_output=True)


def test_the_store_lists_what_it_holds(store, runs, tmp_path):
    first = publish("tiny", store, runs)
    again = train(tmp_path / "again", seed=1)
    second = publish("tiny", store, again, str(again.parent / "store"))
    assert first["version"] != second["version"]
    held = {model["version"]: model for model in models(store)}
    assert set(held) == {first["version"], second["version"]}
    assert held[second["version"]] == {
        "recipe": "tiny",
        "version": second["version"],
        "latest": True,
        "names": ["latest"],
        "uri": second["uri"],
        "sha256": second["sha256"],
        "task": "photos-jpeg",
        "lineage": {
            **{"data": "d1935", "run": "tiny-" + digest(origin(read_recipe("tiny.yaml"), "d1935")), "repository": None},
            **{"commit": BEGAN["commit"], "dirty": None, "who": BEGAN["who"], "when": BEGAN["when"]},
            "parent": first["version"],
        },
        "scores": {key: {"psnr": row["psnr"], "ssim": row["ssim"]} for key, row in SCORES.items()},
    }
    assert not held[first["version"]]["latest"]
    assert load_model(f"{store}/models/tiny", runs).sha256 == second["sha256"]
    publish("tiny", store, runs)  # the one published last is the latest, new or not
    assert load_model(f"{store}/models/tiny", runs).sha256 == first["sha256"]


def test_an_empty_store_has_no_models(store):
    with pytest.raises(UserError, match="no published models in it"):
        models(store)


# once


def test_publishing_twice_changes_nothing(store, runs):
    first = publish("tiny", store, runs)
    place = storage(store)
    before = {name: place.read(name) for name in place.names()}
    again = publish("tiny", store, runs)
    assert again == first | {"new": False}
    assert {name: place.read(name) for name in place.names()} == before


def test_the_version_follows_weights_recipe_and_scores_and_nothing_else(tmp_path, runs):
    def version(runs: Path, store: str = "team") -> str:
        return publish("tiny", str(tmp_path / store), runs, str(runs.parent / "store"))["version"]

    first = version(runs)
    assert version(runs, "elsewhere") == first
    assert version(train(tmp_path / "seed", seed=1)) != first
    (runs / "tiny" / "metrics.json").write_text("{}")
    assert version(runs) == first
    write_scores(runs / "tiny", SCORES | {"x/jpeg-q10": SCORES["photos-test/jpeg-q20"]})
    assert version(runs) != first
    write_scores(runs / "tiny", SCORES)
    recipe = next(tmp_path.glob("store/runs/*/*/recipe.json"))
    recipe.write_text(recipe.read_text().replace('"workers": 3', '"workers": 4'))
    assert version(runs) != first


def test_what_training_left_out_stands_in_the_card_and_in_the_provenance(tmp_path, runs):
    path = runs / "tiny" / "checkpoint.json"
    pointer = json.loads(path.read_text())
    notes = ["8 of 10 images are smaller than a patch of 31x31: a, b, c and 5 more"]
    path.write_text(json.dumps(pointer | {"notes": notes}))
    place = Path(publish("tiny", str(tmp_path / "team"), runs)["uri"])
    assert json.loads((place / "provenance.json").read_text())["notes"] == notes
    assert f"\n\n- {notes[0]}\n\n## Lineage" in (place / "card.md").read_text()


def test_the_provenance_is_that_of_the_training_and_the_first_one_stays(tmp_path, runs, monkeypatch, capsys):
    began = next(tmp_path.glob("store/runs/*/began.json"))
    more = {
        "repository": "https://example.org/us",
        "dirty": True,
        "diff": "d" * 64,
        "codec": "raw",
        "shard_bytes": 65536,
    }
    began.write_text(
        json.dumps(
            BEGAN
            | more
            | {"licences": {"photos": "CC-BY-4.0", "mine": None}, "datasets": {"photos": {"layout": "folder"}}}
        )
    )
    place = Path(publish("tiny", str(tmp_path / "team"), runs)["uri"])
    provenance = json.loads((place / "provenance.json").read_text())
    for key in ("who", "when", "commit"):
        assert provenance[key] == BEGAN[key]
    for key in ("repository", "dirty", "diff"):
        assert provenance[key] == more[key]
    assert provenance["data"] == {
        **{"task": "photos-jpeg", "digest": "d1935", "location": BEGAN["data"], "shard_bytes": 65536, "codec": "raw"},
        **{"licences": {"photos": "CC-BY-4.0", "mine": None}, "datasets": {"photos": {"layout": "folder"}}},
    }
    assert (provenance["machine"], provenance["libraries"]) == (MACHINE, MACHINE["libraries"])
    assert provenance["run"] == json.loads((runs / "tiny/checkpoint.json").read_text())["run"]
    assert (provenance["step"], provenance["world_size"], provenance["parent"]) == (6, 3, None)
    card = (place / "card.md").read_text()
    for part in (
        BEGAN["commit"],
        "https://example.org/us",
        "photos: CC-BY-4.0; mine: not known",
        BEGAN["who"],
        "changes that no commit has",
    ):
        assert part in card
    assert capsys.readouterr().err == ""
    before = contents(place)
    began.write_text(json.dumps(BEGAN | {"who": "Bob"}))
    assert not publish("tiny", str(tmp_path / "team"), runs)["new"]
    assert contents(place) == before


def test_a_training_that_recorded_nothing_is_told_in_one_line(tmp_path, runs, capsys):
    for path in tmp_path.glob("store/runs/*/*.json"):
        path.unlink()
    place = Path(publish("tiny", str(tmp_path / "team"), runs)["uri"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("its training did not record who began it; the provenance says what is known")
    provenance = json.loads((place / "provenance.json").read_text())
    assert (provenance["commit"], provenance["machine"]) == (None, None)
    assert provenance["libraries"]["torch"] == version("torch")
    assert "not recorded" in (place / "card.md").read_text()


def test_a_record_that_is_none_is_one_line(tmp_path, runs):
    next(tmp_path.glob("store/runs/*/began.json")).write_text(json.dumps(BEGAN | {"commit": "../../x"}))
    with pytest.raises(UserError, match=r"began\.json: damaged, or of another version of memoir \(commit: "):
        publish("tiny", str(tmp_path / "team"), runs)


def test_simultaneous_publishers_of_one_model_make_one_version(tmp_path, runs):
    start, results = threading.Barrier(4), []

    def run() -> None:
        start.wait()
        results.append(publish("tiny", str(tmp_path / "team"), runs))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result["version"] for result in results}) == 1
    assert len(results) == 4
    version = Path(results[0]["uri"])
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=version, check=True, capture_output=True)


# killed, and tampered with


@pytest.mark.parametrize("written", range(7))
def test_a_killed_publisher_leaves_no_version_and_the_next_one_finishes_it(store, runs, monkeypatch, written):
    kind = type(storage(store))
    whole, count = kind.write_new, iter(range(100))

    def killed(self, name, data):
        if next(count) == written:
            raise KeyboardInterrupt
        whole(self, name, data)

    monkeypatch.setattr(kind, "write_new", killed)
    with pytest.raises(KeyboardInterrupt):
        publish("tiny", store, runs)
    monkeypatch.setattr(kind, "write_new", whole)
    assert not (runs / "tiny" / "published.json").exists()
    names = storage(store).names()
    assert len(names) == written
    with pytest.raises(UserError, match="no published model"):
        load_model(f"{store}/models/tiny", runs)
    with pytest.raises(UserError, match="no published models"):
        models(store)
    if names:
        with pytest.raises(UserError, match="half published"):
            load_model(f"{store}/{names[0].rpartition('/')[0]}", runs)
    half = {name: storage(store).read(name) for name in names}
    published = publish("tiny", store, runs)
    assert published["new"]
    assert {name: storage(store).read(name) for name in names} == half
    assert load_model(f"{store}/models/tiny", runs).sha256 == published["sha256"]


def test_a_version_without_a_pointer_gets_one_by_publishing_again(store, runs, monkeypatch):
    kind = type(storage(store))
    whole = kind.write

    def killed(self, name, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        publish("tiny", store, runs)
    monkeypatch.setattr(kind, "write", whole)
    assert [model["latest"] for model in models(store)] == [False]
    published = publish("tiny", store, runs)
    assert not published["new"]
    assert [model["latest"] for model in models(store)] == [True]
    assert load_model(f"{store}/models/tiny", runs).uri == published["uri"]


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.yaml", "task.yaml", "metrics.json", "provenance.json"])
def test_a_half_version_with_other_contents_is_not_finished(store, runs, tmp_path, name):
    version = publish("tiny", str(tmp_path / "draft"), runs)["version"]
    storage(store).write(f"models/tiny/{version}/{name}", b"something else")
    with pytest.raises(UserError, match=rf"{version}/{name}: is there with other contents"):
        publish("tiny", store, runs)
    assert not any(name.endswith(("SHA256SUMS", "latest.json")) for name in storage(store).names())


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.yaml", "task.yaml", "provenance.json"])
def test_a_file_that_was_tampered_with_is_not_read(store, runs, name):
    published = publish("tiny", store, runs)
    place = storage(published["uri"])
    data = bytearray(place.read(name))
    data[len(data) // 2] ^= 1
    place.write(name, bytes(data))
    for reference in (published["uri"], f"{store}/models/tiny"):
        with pytest.raises(UserError, match=f"{published['version']}/{name}: changed since it was written"):
            load_model(reference, runs)


def test_a_listing_with_scores_that_were_tampered_with_is_refused(store, runs):
    place = storage(publish("tiny", store, runs)["uri"])
    place.write("metrics.json", place.read("metrics.json").replace(b"28.125", b"29.125"))
    with pytest.raises(UserError, match=r"metrics.json: changed since it was written"):
        models(store)


@pytest.mark.parametrize("sums", [b"", b"nonsense", b"\xff\xfe"])
def test_damaged_sums_are_no_licence_to_read(store, runs, sums):
    place = storage(publish("tiny", store, runs)["uri"])
    place.write("SHA256SUMS", sums)
    for attempt in (lambda: load_model(place.uri, runs), lambda: publish("tiny", store, runs), lambda: models(store)):
        with pytest.raises(UserError, match="SHA256SUMS: damaged"):
            attempt()


def test_a_whole_version_with_other_contents_is_not_taken_for_ours(tmp_path, runs):
    version = Path(publish("tiny", str(tmp_path / "team"), runs)["uri"])
    seeded = train(tmp_path / "seed", seed=1)
    other = Path(publish("tiny", str(tmp_path / "other"), seeded, str(seeded.parent / "store"))["uri"])
    shutil.rmtree(version)
    shutil.copytree(other, version)
    with pytest.raises(UserError, match=r"model.safetensors: is there with other contents"):
        publish("tiny", str(tmp_path / "team"), runs)


def test_a_version_that_lost_a_file_is_named(tmp_path, runs):
    version = Path(publish("tiny", str(tmp_path / "team"), runs)["uri"])
    (version / "card.md").unlink()
    with pytest.raises(UserError, match=r"lacks card.md; remove the version and publish again"):
        publish("tiny", str(tmp_path / "team"), runs)
    shutil.rmtree(version)
    assert publish("tiny", str(tmp_path / "team"), runs)["new"]


# what cannot be published, and what cannot be loaded


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("checkpoint.json", "memoir train tiny"),
        ("metrics.json", "memoir train tiny"),
        ("scores.json", "memoir evaluate --model tiny"),
        ("protocols.json", "memoir evaluate --model tiny"),
    ],
)
def test_only_what_is_trained_and_evaluated_is_published(tmp_path, runs, missing, command):
    (runs / "tiny" / missing).unlink()
    with pytest.raises(UserError, match=rf"{missing}: not found; `{command}`"):
        publish("tiny", str(tmp_path / "team"), runs)
    assert not (tmp_path / "team").exists()


def test_a_checkpoint_that_changed_since_the_training_is_refused(tmp_path, runs):
    path = next(tmp_path.glob("store/runs/*/*/model.safetensors"))
    changed = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save_file(changed, path)
    with pytest.raises(UserError, match=r"model.safetensors: changed since it was written"):
        load_model("tiny", runs)
    with pytest.raises(UserError, match=r"model.safetensors: changed since it was written"):
        publish("tiny", str(tmp_path / "team"), runs)
    assert not (tmp_path / "team").exists()


def test_a_checkpoint_that_is_gone_is_named(tmp_path, runs):
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(UserError, match=r"recipe.json: not found, and .*checkpoint.json points to it"):
        load_model("tiny", runs)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"channels": 5}, "tensors of another shape, e.g. "),
        ({"memory_blocks": 3}, "tensors missing, e.g. blocks.2"),
        ({"memory_blocks": 1}, "tensors that the model has not, e.g. blocks.1"),
        ({"colour": 1}, "model memnet: colour: Extra inputs are not permitted"),
        ({"channels": 10**9}, "model memnet: "),
        ({"memory_blocks": 10**9}, "which has more than 10,062 tensors"),
        ({"channels": 10**30}, "model memnet: "),
        ({"channels": -1}, "must be at least 1"),
        ({"channels": "many"}, "model memnet: channels: Input should be a valid integer"),
        ({"channels": 0}, "must be at least 1"),
    ],
)
def test_weights_of_another_architecture_are_refused_in_one_line(tmp_path, runs, option, message):
    path = next(tmp_path.glob("store/runs/*/*/recipe.json"))
    recipe = json.loads(path.read_text())
    path.write_text(json.dumps(recipe | {"model": recipe["model"] | option}))
    with pytest.raises(UserError, match=message) as error:
        load_model("tiny", runs)
    assert "\n" not in str(error.value)


def test_a_model_of_a_later_version_is_named(tmp_path, runs):
    path = next(tmp_path.glob("store/runs/*/*/recipe.json"))
    path.write_text(path.read_text().replace('"memnet"', '"memnets"'))
    with pytest.raises(UserError, match=r"unknown model 'memnets'; did you mean 'memnet'"):
        load_model("tiny", runs)


def test_pickles_are_not_opened(tmp_path, runs):
    path = next(tmp_path.glob("store/runs/*/*/model.safetensors"))
    torch.save({"weight": torch.zeros(1)}, path)
    pointer = runs / "tiny" / "checkpoint.json"
    pointer.write_text(json.dumps(json.loads(pointer.read_text()) | {"sha256": sha256(path)}))
    with pytest.raises(UserError, match="not a safetensors file"):
        load_model("tiny", runs)


def test_an_unknown_reference_says_what_there_is(tmp_path, runs):
    with pytest.raises(UserError, match=r"no model 'tinny' in .*did you mean 'tiny'"):
        load_model("tinny", runs)
    with pytest.raises(UserError, match=r"`memoir train memnet-jpeg-sample` writes it"):
        load_model("memnet-jpeg-sample", runs)
    with pytest.raises(UserError, match=r"no model 'tiny' in .*; known: memnet-jpeg-cpu"):
        load_model("tiny", tmp_path / "elsewhere")


@pytest.mark.parametrize("wrong", ["", "/models", "/models/tinny", "/models/tiny/0123456789ab"])
def test_a_wrong_place_in_a_store_says_what_is_near(store, runs, wrong):
    uri = publish("tiny", store, runs)["uri"]
    with pytest.raises(UserError, match=r"no published model; .*known: ") as error:
        load_model(store + wrong, runs)
    assert uri in str(error.value)


def test_a_pointer_to_a_version_that_is_gone_is_named(store, runs):
    publish("tiny", store, runs)
    storage(store).write("models/tiny/latest.json", b'{"version": "0123456789ab"}')
    with pytest.raises(UserError, match=r"latest.json: version 0123456789ab is not there"):
        load_model(f"{store}/models/tiny", runs)
    storage(store).write("models/tiny/latest.json", b"{")
    with pytest.raises(UserError, match=r"latest.json: damaged"):
        load_model(f"{store}/models/tiny", runs)


def test_scores_of_other_weights_are_not_published(store, runs):
    name = "tiny"
    pointer = json.loads((runs / name / "checkpoint.json").read_text())
    for weights_sha256, fits in ((pointer["sha256"], True), ("0" * 64, False)):
        write_scores(runs / name, {key: {**row, "weights": weights_sha256} for key, row in SCORES.items()})
        if fits:
            publish(name, store, runs)
        else:
            with pytest.raises(UserError, match="scores of other weights"):
                publish(name, store, runs)


def test_a_pointer_of_another_version_is_one_line(runs):
    path = runs / "tiny" / "checkpoint.json"
    pointer = json.loads(path.read_text())
    del pointer["data"]["colour"]
    path.write_text(json.dumps(pointer))
    with pytest.raises(UserError, match=r"of another version of memoir \(colour: Field required\); train again$"):
        load_model("tiny", runs)


@pytest.mark.parametrize("name", ["memorynet-deshadow-sample", "timelapse-derain-sample", "drcnet-derain-sample"])
def test_the_card_of_every_kind_of_task_says_what_the_model_restores(name):
    recipe = read_recipe(name)
    task = read_task(recipe.data.task)
    model = build_model(recipe.model)
    degradation = task.degradation.model_dump(mode="json")
    provenance = {"recipe": name, "step": 7, "data": {"digest": "d1"}}
    shown = {"colour": task.colour, "degradation": degradation, "splits": {"train": ["rain/train"]}}
    card = card_of("store/x", model, recipe.model_dump(), shown, SCORES, provenance)
    said = {
        "paired": "Images degraded as the inputs of its training data are. It works on RGB images.",
        "timelapse": "such as rain (pairs per scene all). It works on RGB images.",
    }
    assert said[task.degradation.kind] in card
    assert "float32 (B, 3, H, W)" in card
    assert "not measured, all images are smaller than a tile." in card
    measured = {"a/pairs-rgb": SCORES["Classic5/jpeg-q10"] | {"blended": {"image": "x-1", "psnr": 51.23}}}
    card = card_of("store/x", model, recipe.model_dump(), shown, measured, provenance)
    assert "One of more than 409,600 pixels is restored in tiles of 256 pixels a side" in card
    assert "on at most 409,600 pixels: x-1 of a/pairs-rgb 51.2 dB." in card


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            [],
            [
                "n 12, u 4, o 4, cabs 2, decay_all False.",
                "",
                "- memory: profile ours, parts 5, instances 2, classes 10, levels 3, space feature, similarity cos, "
                "normalise False, base input, order class, shrink 0.0, residual True",
                "- loss: lambda_edge 0.05, recon net, pretrain_share 0.1",
                "- contrastive: lambda_cr 0.1, ramp 0.05, ratio sample, vgg.path stand-in, vgg.sha256 None",
                "",
                "The paper and the code: `jobs/models/memorynet.py`.",
            ],
        ),
        (
            ["model.memory=null", "model.contrastive=null"],
            [
                "n 12, u 4, o 4, cabs 2, memory None, contrastive None, decay_all False.",
                "",
                "- loss: lambda_edge 0.05, recon net, pretrain_share 0.1",
                "",
                "The paper and the code: `jobs/models/memorynet.py`.",
            ],
        ),
    ],
)
def test_the_card_has_a_line_for_each_group_of_options(overrides, lines):
    recipe = read_recipe("memorynet-deshadow-sample", overrides)
    provenance = {"recipe": "x", "step": 7, "data": {"digest": "d1"}}
    task = read_task(recipe.data.task).model_dump(mode="json")
    model = build_model(recipe.model)
    card = card_of("store/x", model, recipe.model_dump(mode="json"), task, SCORES, provenance)
    architecture = card.partition("## Architecture")[2].partition("## Training data")[0]
    assert architecture.strip().splitlines()[1:] == lines


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "without options."),
        ({"depth": 3}, "depth 3."),
        ({"extra": {}}, "extra {}."),
        ({"stem": {"k": 3}}, "- stem: k 3"),
    ],
)
def test_the_card_of_any_network_says_its_options(options, line):
    recipe = read_recipe("memorynet-deshadow-sample")
    told = recipe.model_dump(mode="json") | {"model": {"name": "memnet", **options}}
    task = read_task(recipe.data.task).model_dump(mode="json")
    provenance = {"recipe": "x", "step": 7, "data": {"digest": "d1"}}
    card = card_of("store/x", build_model(recipe.model), told, task, SCORES, provenance)
    said = [each for each in card.partition("parameters:\n")[2].splitlines() if each]
    assert said[0] == line
    assert said[1].startswith("The paper and the code")


def test_the_card_of_a_model_that_sees_a_few_pixels_says_nothing_of_tiles(runs):
    assert "tiles" not in Path(publish("tiny", str(runs.parent / "team"), runs)["uri"], "card.md").read_text()


def test_a_name_in_a_store_tells_the_terminal_nothing(runs, tmp_path, cli):
    publish("tiny", str(tmp_path / "team"), runs)
    (tmp_path / "team/models/tiny").rename(tmp_path / "team/models/ti\x1b[2Jny")
    code, out, _ = cli("models", str(tmp_path / "team"))
    assert code == 0
    assert "ti\\x1b[2Jny/" in out
    assert "\x1b" not in out


# by the file that publishing leaves


def test_published_json_stands_for_the_version_that_it_names_wherever_the_store_is(store, runs, tmp_path, cli):
    named = runs / "tiny/published.json"
    first = publish("tiny", store, runs)
    kept = named.read_bytes()
    again = train(tmp_path / "again", seed=1)
    publish("tiny", store, again, str(again.parent / "store"))
    assert load_model(f"{store}/models/tiny", runs).sha256 != first["sha256"]
    assert load_model(str(named), runs, store=store).sha256 == first["sha256"]
    if "://" not in store:
        moved = Path(store).rename(tmp_path / "moved")
        assert load_model(str(named), runs, store=str(moved)).uri == f"{moved}/{first['model']}"
    assert named.read_bytes() == kept


def test_a_version_that_the_store_lacks_is_one_line_with_the_store_and_what_to_do(runs, tmp_path):
    published = publish("tiny", str(tmp_path / "team"), runs)
    with pytest.raises(UserError) as error:
        load_model(str(runs / "tiny/published.json"), runs, store=str(tmp_path / "mine"))
    assert str(error.value).startswith(
        f"{tmp_path}/mine: lacks {published['model']}, which {runs}/tiny/published.json names"
    )
    assert "`memoir store copy`" in str(error.value)
    assert "ask who published it" in str(error.value)


@pytest.mark.parametrize("model", ["models/tiny/../../../x", "/etc", "models/../0123456789ab", "models/tiny/stable"])
def test_a_published_json_that_leads_elsewhere_is_damaged(runs, tmp_path, model):
    publish("tiny", str(tmp_path / "team"), runs)
    path = runs / "tiny/published.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": model}))
    with pytest.raises(UserError, match=r"published\.json: damaged, or of another version of memoir \(model: "):
        load_model(str(path), runs, store=str(tmp_path / "team"))


def test_a_published_json_of_other_weights_is_refused(runs, tmp_path):
    publish("tiny", str(tmp_path / "team"), runs)
    path = runs / "tiny/published.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match=r"has other weights than .*published\.json names"):
        load_model(str(path), runs, store=str(tmp_path / "team"))


@pytest.mark.parametrize(("name", "key"), [("checkpoint", "checkpoint"), ("published", "model")])
def test_a_pointer_with_a_uri_is_of_an_older_version_in_one_line(runs, tmp_path, name, key):
    publish("tiny", str(tmp_path / "team"), runs)
    path = runs / f"tiny/{name}.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in value.items() if k != key} | {"uri": f"store/{value[key]}"}))
    reference = "tiny" if name == "checkpoint" else str(path)
    with pytest.raises(UserError, match=rf"{name}\.json: of an older version of memoir; (train|publish) again$"):
        load_model(reference, runs)


def test_a_checkpoint_of_another_run_is_damaged(runs):
    path = runs / "tiny/checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run": "tiny-0"}))
    with pytest.raises(UserError, match=r"checkpoint\.json: damaged, .*checkpoint: of another run"):
        load_model("tiny", runs)


def test_a_folder_as_store_beside_a_dvc_remote_is_told_once(runs, tmp_path, cli):
    assert cli("publish", "tiny")[2] == ""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    remote = team\n['remote \"team\"']\n    url = s3://bucket/dvc\n")
    code, _, err = cli("publish", "tiny")
    assert code == 0
    (line,) = err.splitlines()
    assert line.startswith(
        f"{tmp_path}/store: a folder of this machine, so that colleagues who pull from the DVC remote team get"
    )
    assert "`memoir share init s3://...`" in line


# names


@pytest.mark.parametrize("how", ["variable", "copy"])
def test_an_experiment_publishes_and_moves_no_name(runs, tmp_path, monkeypatch, cli, how):
    first = publish("tiny", str(tmp_path / "store"), runs)
    again = train(tmp_path / ".dvc/tmp/exps/tmp1", seed=1)
    monkeypatch.chdir(again.parent)
    if how == "variable":
        again = train(tmp_path / "again", seed=1)
        monkeypatch.chdir(again.parent)
        monkeypatch.setenv("DVC_EXP_NAME", "brave-fox")
    code, out, err = cli("publish", "tiny", "--to", str(tmp_path / "store"))
    assert (code, err) == (0, "")
    version = json.loads((again / "tiny/published.json").read_text())["version"]
    assert out.splitlines()[-1].endswith(f"not the latest; `memoir promote tiny/{version} latest` makes it so")
    assert load_model(f"{tmp_path}/store/models/tiny", runs).sha256 == first["sha256"]
    assert cli("promote", f"tiny/{version}", "latest", "--store", str(tmp_path / "store"))[0] == 0
    assert load_model(f"{tmp_path}/store/models/tiny", runs).sha256 != first["sha256"]


def test_a_promoted_version_is_found_by_its_name_and_the_record_says_who_when_and_why(
    store, runs, tmp_path, cli, monkeypatch
):
    monkeypatch.setattr("jobs.publishing.promote.author", lambda: "Ada")
    first = publish("tiny", store, runs)
    again = train(tmp_path / "again", seed=1)
    second = publish("tiny", store, again, str(again.parent / "store"))
    with pytest.raises(UserError, match=r"models/tiny: no version is called stable; known: latest"):
        load_model(f"{store}/models/tiny@stable", runs)
    for published, why in ((first, "the best on rain"), (second, "better")):
        code, _, err = cli("promote", f"tiny/{published['version']}", "stable", "--why", why, "--store", store)
        assert (code, err) == (0, "")
        assert load_model(f"{store}/models/tiny@stable", runs).sha256 == published["sha256"]
    records = promotions(storage(store), "tiny")
    assert [
        (r["who"], r["why"], r["version"], r["before"]) for r in sorted(records, key=lambda r: r["before"] or "")
    ] == [
        ("Ada", "the best on rain", first["version"], None),
        ("Ada", "better", second["version"], first["version"]),
    ]
    assert {m["version"]: m["names"] for m in models(store)} == {
        first["version"]: [],
        second["version"]: ["latest", "stable"],
    }
    assert "  latest  stable  " in cli("models", store)[1]


def test_no_record_is_lost_when_several_promote_at_once(store, runs):
    version = publish("tiny", store, runs)["version"]
    start = threading.Barrier(4)

    def run(i: int) -> None:
        start.wait()
        promote(f"tiny/{version}", "stable", store, str(i))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(record["why"] for record in promotions(storage(store), "tiny")) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("version", "name", "why", "says"),
    [
        ("tiny", "stable", None, "tiny: not a version; expected RECIPE/VERSION"),
        ("../x/0123456789ab", "stable", None, "not a version"),
        ("tiny/0123456789ab", "stable", None, "no published model; did you mean|no published model; known"),
        (None, "../stable", None, "not a name for a version"),
        (None, "Stable", None, "not a name for a version"),
        (None, "stable", "two\nlines", "--why: expected one line"),
    ],
)
def test_a_promotion_of_nothing_is_one_line_and_leaves_nothing(store, runs, version, name, why, says):
    held = publish("tiny", store, runs)["version"]
    before = storage(store).names()
    with pytest.raises(UserError, match=says):
        promote(version or f"tiny/{held}", name, store, why)
    assert storage(store).names() == before


def test_models_are_chosen_by_task_benchmark_and_score(runs, tmp_path, cli, monkeypatch):
    low = publish("tiny", str(tmp_path / "store"), runs)["version"]
    scores = json.loads(json.dumps(SCORES))
    scores["Classic5/jpeg-q10"]["psnr"] = 29.5
    del scores["photos-test/jpeg-q20"]
    write_scores(runs / "tiny", scores)
    high = publish("tiny", str(tmp_path / "store"), runs)["version"]

    def shown(*arguments: str) -> list[str]:
        code, out, _ = cli("models", "--json", *arguments)
        assert code == 0
        return [model["version"] for model in json.loads(out)]

    assert shown() == sorted([low, high])
    assert shown("--benchmark", "jpeg-q10", "--sort", "psnr") == [high, low]
    assert shown("--sort", "psnr") == [low, high]  # of identical images it is infinite
    assert shown("--benchmark", "jpeg-q10", "--min-psnr", "29") == [high]
    assert shown("--benchmark", "photos-test/jpeg-q20") == [low]
    assert shown("--task", "photos-jpeg") == sorted([low, high])
    assert "did you mean 'photos-jpeg'" in cli("models", "--task", "photos-jpg")[2]
    assert "known: " in cli("models", "--benchmark", "sr-x3")[2]
    lines = cli("models", "--lineage", f"tiny/{high}")[1].splitlines()
    for line in ("data: d1935", f"commit: {BEGAN['commit']}", f"parent: {low}", f"who: {BEGAN['who']}"):
        assert f"tiny/{high}  {line}" in lines
    assert cli("models", "--lineage", "tiny/0123456789ab")[0] == 1
