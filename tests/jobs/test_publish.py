"""The store: what is published, what of it is read, and what is refused."""

import hashlib
import json
import os
import shutil
import subprocess
import threading
import uuid
from pathlib import Path

import pytest
import torch
from conftest import untrained_run
from safetensors.torch import load_file, save_file

from jobs.publishing.card import card as card_of
from jobs.publishing.publish import FILES, models, publish
from jobs.recipe import build_model, read_recipe
from jobs.restoring.checkpoint import load_model
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
def runs(tmp_path) -> Path:
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


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


# a version


def test_a_published_model_is_the_trained_one(store, runs):
    published = publish("tiny", store, runs)
    assert published.pop("new")
    assert json.loads((runs / "tiny" / "published.json").read_text()) == published
    assert published["uri"] == f"{store}/models/tiny/{published['version']}"
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
        "JPEG compression (quality 10, 20; subsampling 4:2:0)",
        "photos/train",
        "| images / benchmark | metric | degraded input | tiny | as published |",
        "| Classic5/jpeg-q10 | PSNR (dB) | 27.82 | **28.12** | JPEG 27.82, MemNet 29.69 |",
        "| Classic5/jpeg-q10 | SSIM | 0.7595 | **0.7812** | JPEG 0.7595, MemNet 0.8107 |",
        "| photos-test/jpeg-q20 | PSNR (dB) | 30.50 | **identical** |  |",
        "- Classic5/jpeg-q10: 5 images, gray-float@1 (colour=grey)",
        f"memoir restore --model {version} IN OUT",
        "Apache License 2.0",
    ):
        assert part in card
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=version, check=True, capture_output=True)


def test_the_store_lists_what_it_holds(store, runs, tmp_path):
    first = publish("tiny", store, runs)
    second = publish("tiny", store, train(tmp_path / "again", seed=1))
    assert first["version"] != second["version"]
    held = {model["version"]: model for model in models(store)}
    assert set(held) == {first["version"], second["version"]}
    assert held[second["version"]] == {
        "recipe": "tiny",
        "version": second["version"],
        "latest": True,
        "uri": second["uri"],
        "sha256": second["sha256"],
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
        return publish("tiny", str(tmp_path / store), runs)["version"]

    first = version(runs)
    assert version(runs, "elsewhere") == first
    assert version(train(tmp_path / "seed", seed=1)) != first
    (runs / "tiny" / "metrics.json").write_text("{}")
    assert version(runs) == first
    (runs / "tiny" / "scores.json").write_text(json.dumps(SCORES | {"x/jpeg-q10": SCORES["photos-test/jpeg-q20"]}))
    assert version(runs) != first
    (runs / "tiny" / "scores.json").write_text(json.dumps(SCORES))
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
    assert f"\n\n- {notes[0]}\n\n## Scores" in (place / "card.md").read_text()


def test_the_first_provenance_stays(tmp_path, runs, monkeypatch):
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.chdir(repository)
    git("init")
    (repository / "code.py").write_text("")
    git("add", ".")
    git("commit", "-m", "first")
    (repository / "dvc.lock").write_text("what the stages rewrite while they run")
    uri = publish("tiny", str(tmp_path / "team"), runs)["uri"]
    provenance = json.loads(Path(uri, "provenance.json").read_text())
    assert (provenance["commit"], provenance["dirty"]) == (git("rev-parse", "HEAD"), False)
    assert (provenance["run"], provenance["step"], provenance["world_size"]) == ("tiny-0", 6, 3)
    assert provenance["data"] == {"task": "photos-jpeg", "digest": "d1935"}
    assert provenance["libraries"]["torch"] == torch.__version__
    before = contents(Path(uri))

    (repository / "code.py").write_text("changed")
    elsewhere = publish("tiny", str(tmp_path / "elsewhere"), runs)["uri"]
    assert json.loads(Path(elsewhere, "provenance.json").read_text())["dirty"] is True
    git("commit", "-a", "-m", "second")
    assert publish("tiny", str(tmp_path / "team"), runs)["uri"] == uri
    assert contents(Path(uri)) == before


def test_outside_git_there_is_no_commit(tmp_path, runs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    uri = publish("tiny", str(tmp_path / "team"), runs)["uri"]
    provenance = json.loads(Path(uri, "provenance.json").read_text())
    assert (provenance["commit"], provenance["dirty"]) == (None, None)


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
    other = Path(publish("tiny", str(tmp_path / "other"), train(tmp_path / "seed", seed=1))["uri"])
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
    [("checkpoint.json", "memoir train tiny"), ("scores.json", "memoir evaluate --model tiny")],
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
    with pytest.raises(UserError, match="nothing is trained there yet"):
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
    (name,) = (path.parent.name for path in runs.glob("*/scores.json"))
    path = runs / name / "scores.json"
    scores = json.loads(path.read_text())
    pointer = json.loads((runs / name / "checkpoint.json").read_text())
    for weights_sha256, fits in ((pointer["sha256"], True), ("0" * 64, False)):
        path.write_text(json.dumps({key: {**row, "weights": weights_sha256} for key, row in scores.items()}))
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
                "- memory: parts 5, instances 2, classes 10, levels 3, space feature, similarity cos, shrink 0.0, residual True",
                "- loss: lambda_edge 0.05, recon net, pretrain_share 0.1",
                "- contrastive: lambda_cr 0.1, ramp 0.05, vgg.path stand-in, vgg.sha256 None",
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
