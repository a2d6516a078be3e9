"""Stores, runs and checkpoints that were made to harm: one clear line, or a result as good as any; nothing outside is touched."""

import hashlib
import io
import json
import math
import pickle
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import photograph, untrained_run
from fuzz.readers import RECIPE, SCORES
from hostile import EXAMPLES, canary, mutated, nasty, one_line
from hypothesis import given
from hypothesis import strategies as st

from jobs.publishing.publish import models, publish
from jobs.recipe import read_recipe
from jobs.report import write_report
from jobs.restoring.checkpoint import load_model
from jobs.restoring.restore import restore
from jobs.training.loop import Run
from jobs.training.resume import Checkpoints
from jobs.training.run import plan_run
from jobs.training.train import train
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.images import write_image
from pipeline.storage import storage

pytestmark = pytest.mark.usefixtures("one_thread")
FILES = (
    "recipe.yaml",
    "task.yaml",
    "metrics.json",
    "provenance.json",
    "SHA256SUMS",
    "latest.json",
    "model.safetensors",
)
TRAINED = """
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 2, bn_momentum: 0.1}
data: {task: tiny, patch: 12, stride: 8, dihedral: false, batch: 4}
optimisation: {optimiser: adam, lr: 0.001, schedule: cosine, length: {steps: 4}}
training: {workers: 1}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
"""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sums(folder: Path, name: str, *files: str) -> None:
    """Write a file of sums that fits the other files."""
    listed = files or sorted(path.name for path in folder.iterdir() if path.name != name)
    (folder / name).write_text("".join(f"{sha256(folder / file)}  {file}\n" for file in listed))


def changed(data: st.DataObject, path: Path, outside: Path) -> bytes:
    """Another version of a file of a model or a run."""
    contents = path.read_bytes()
    values = nasty(outside)
    if path.suffix == ".json":
        return json.dumps(mutated(data, json.loads(contents), values)).encode()
    if path.suffix == ".jsonl":
        lines = mutated(data, [json.loads(line) for line in contents.splitlines()], values)
        return "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    if path.suffix == ".yaml":
        return yaml.safe_dump(mutated(data, yaml.safe_load(contents), values), allow_unicode=True).encode()
    if path.suffix == ".safetensors":
        length = int.from_bytes(contents[:8], "little")
        header = json.dumps(mutated(data, json.loads(contents[8 : 8 + length]), values)).encode()
        said = data.draw(st.sampled_from([len(header), len(header), len(header), 0, 2**40, 2**64 - 1]))
        return said.to_bytes(8, "little") + header + contents[8 + length :]
    if path.name in ("SHA256SUMS", "checkpoint.sha256"):
        lines = contents.decode().splitlines()
        at = data.draw(st.integers(0, len(lines) - 1))
        digest, name = lines[at].split("  ")
        named = data.draw(
            st.sampled_from(["../file", f"{outside}/file", "../../canary/file", ".", "", "a b", "\x1b[2J", name])
        )
        lines[at] = data.draw(
            st.sampled_from(
                [f"{digest}  {named}", f"{named}  {name}", named, f"{digest} {name}", f"{'0' * 64}  {named}"]
            )
        )
        return "\n".join([*lines, *data.draw(st.sampled_from([[], [lines[0]], [lines[at]], [""]]))]).encode()
    raise AssertionError(path)


# a published model


@pytest.fixture(scope="module")
def team(tmp_path_factory) -> Path:
    """A place with runs/ of a trained recipe, `team`, a store that has it, and an image."""
    place = tmp_path_factory.mktemp("team")
    runs = untrained_run(place, RECIPE, metrics={"step": 6, "loss": 0.1}, scores=SCORES)
    publish("tiny", str(place / "team"), runs, str(place / "store"))
    write_image(place / "in.png", photograph(0, 20, 24, 1))
    return place


@pytest.mark.timeout(60)
@pytest.mark.parametrize("blocks", [20, 10**9])
def test_a_recipe_that_asks_for_more_tensors_than_its_weights_have_is_one_line_at_once(
    team, tmp_path, monkeypatch, blocks
):
    monkeypatch.setattr("jobs.restoring.checkpoint.SPARE", 100)
    place = tmp_path / "sandbox"
    shutil.copytree(team, place)
    (recipe,) = place.glob("team/models/tiny/*/recipe.yaml")
    resolved = yaml.safe_load(recipe.read_text())
    resolved["model"]["memory_blocks"] = blocks
    recipe.write_text(yaml.safe_dump(resolved))
    sums(recipe.parent, "SHA256SUMS")
    with pytest.raises(UserError, match=r"not of the recipe's model, which has more than 1\d\d tensors$"):
        load_model(str(place / "team/models/tiny"), tmp_path)
    torch.nn.Linear(200, 200)  # is counted no more
    trained = load_model(str(team / "team/models/tiny"), tmp_path)
    assert trained.name == "tiny"


@pytest.mark.parametrize("name", FILES)
@EXAMPLES
@given(data=st.data())
def test_a_hostile_published_model_is_one_line_and_reaches_nothing(team, tmp_path, name, data):
    place = tmp_path / "sandbox"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(team, place)
    (version,) = (path.parent for path in place.glob("team/models/tiny/*/card.md"))
    path = version / name if name != "latest.json" else version.parent / name
    with canary(tmp_path) as outside:
        path.write_bytes(changed(data, path, outside))
        if name not in ("SHA256SUMS", "latest.json"):
            sums(version, "SHA256SUMS")
        uri = str(place / "team")
        one_line(lambda: models(uri))
        one_line(lambda: load_model(str(version), place / "runs"))
        one_line(lambda: list(restore(f"{uri}/models/tiny", place / "in.png", place / "out.png", place / "none")))
        one_line(lambda: publish("tiny", uri, place / "runs", str(place / "store")))
    assert {path.name for path in tmp_path.iterdir()} == {"canary", "sandbox"}


@pytest.mark.parametrize("name", ["checkpoint.json", "scores.json", "protocols.json", "metrics.json", "recipe.json"])
@EXAMPLES
@given(data=st.data())
def test_hostile_results_of_a_recipe_are_one_line_and_reach_nothing(team, tmp_path, name, data):
    place = tmp_path / "sandbox"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(team, place)
    store, run = str(place / "store"), next(place.glob("store/runs/*/step-*"))
    path = run / name if name == "recipe.json" else place / "runs/tiny" / name
    with canary(tmp_path) as outside:
        path.write_text(json.dumps(mutated(data, json.loads(path.read_text()), nasty(outside))))
        one_line(lambda: load_model("tiny", place / "runs", store=store))
        one_line(lambda: publish("tiny", str(place / "other"), place / "runs", store))
        one_line(lambda: write_report(["tiny"], place / "runs", place / "report"))
    assert {path.name for path in tmp_path.iterdir()} == {"canary", "sandbox"}


# a run


@pytest.fixture(scope="module")
def trained(builder, tmp_path_factory) -> SimpleNamespace:
    """A run of one step with its checkpoint in a store, as `memoir train` finds it there. data, store: folders."""
    files = {f"train/{i}.png": photograph(i, 20, 20, 1) for i in range(2)}
    data = builder("hostile-run", files)
    place = tmp_path_factory.mktemp("hostile-run")
    (place / "tiny.yaml").write_text(TRAINED)
    run = Run(read_recipe(str(place / "tiny.yaml")), data, torch.device("cpu"))
    run.train(save=lambda _: None, log=lambda _: None)
    planned = plan_run(str(place / "tiny.yaml"), data=str(data.parent), store=str(place / "store"))
    checkpoint = place / "store/runs" / planned.run / "step-00000004"
    for name, contents in run.save().items():
        write_bytes(checkpoint / name, contents)
    sums(checkpoint, "checkpoint.sha256")
    write_bytes(checkpoint.parent / "done.json", b'{"checkpoint": "step-00000004"}')
    write_bytes(checkpoint.parent / "metrics.jsonl", run.save()["metrics.jsonl"])
    return SimpleNamespace(place=place, data=data, run=run, checkpoint=checkpoint)


@pytest.mark.parametrize(
    "name",
    [
        "state.json",
        "recipe.json",
        "metrics.jsonl",
        "checkpoint.sha256",
        "model.safetensors",
        "../done.json",
        "../metrics.jsonl",
    ],
)
@EXAMPLES
@given(data=st.data())
def test_a_hostile_checkpoint_is_one_line_and_reaches_nothing(trained, tmp_path, name, data):
    place = tmp_path / "sandbox"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(trained.place, place)
    checkpoint = place / trained.checkpoint.relative_to(trained.place)
    path = (checkpoint / name).resolve()
    with canary(tmp_path) as outside:
        path.write_bytes(changed(data, path, outside))
        if name != "checkpoint.sha256" and path.parent == checkpoint.resolve():
            sums(checkpoint, "checkpoint.sha256")
        kept = Checkpoints(storage(str(checkpoint.parent)), keep_last=1, keep_best=0)
        one_line(lambda: kept.newest(place / "copy", lambda line: None))
        one_line(lambda: trained.run.load(checkpoint))
        one_line(
            lambda: train(
                str(place / "tiny.yaml"), data=str(trained.data.parent), store=str(place / "store"), runs=place / "runs"
            )
        )
    assert {path.name for path in tmp_path.iterdir()} == {"canary", "sandbox"}


@pytest.mark.parametrize("name", ["metrics.jsonl", "step-00000004/state.json", "step-00000004/model.safetensors"])
def test_a_run_that_has_ended_and_lacks_a_file_is_one_line(trained, tmp_path, name):
    place = tmp_path / "sandbox"
    shutil.copytree(trained.place, place)
    (place / trained.checkpoint.relative_to(trained.place)).parent.joinpath(name).unlink()
    with pytest.raises(
        UserError, match=rf"{name}: missing, of a run that has ended; bring it back, or remove \S+ and tr"
    ):
        train(str(place / "tiny.yaml"), data=str(trained.data.parent), store=str(place / "store"), runs=place / "runs")


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def _optimisers(place: Path, whole_state: dict[str, Any]) -> dict[str, bytes]:
    (state,) = whole_state["parts"]

    def saved(value: Any, **more: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save({"parts": [value], "scaler": {}} | more, buffer)
        return buffer.getvalue()

    number = max(state["state"], key=lambda number: state["state"][number]["exp_avg"].numel())
    shape = state["state"][number]["exp_avg"].shape

    def moments(tensor: Any) -> dict[str, Any]:
        return state | {"state": {number: {"step": torch.tensor(1.0), "exp_avg": tensor, "exp_avg_sq": tensor}}}

    groups = state["param_groups"]
    whole = saved(state)
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return {
        "empty": b"",
        "text": b"text",
        "cut": whole[: len(whole) // 2],
        "a pickle": pickle.dumps(Evil(place)),
        "an object": saved({"state": Evil(place), "param_groups": []}),
        "a list": saved([]),
        "nothing": saved({"state": {}, "param_groups": []}),
        "compressed": packed.getvalue(),
        "terabytes": saved(moments(torch.zeros(1).expand(10**6, 10**6))),
        "one number for all": saved(moments(torch.zeros(1).expand(shape))),
        "whole numbers": saved(moments(torch.zeros(shape, dtype=torch.int64))),
        "half the moments": saved(state | {"state": {0: {"step": torch.tensor(1.0)}}}),
        "texts": saved(moments("text")),
        "another parameter": saved(state | {"state": {10**6: state["state"][0]}}),
        "a negative parameter": saved(state | {"state": {"x": state["state"][0]}}),
        "another rate": saved(state | {"param_groups": [group | {"betas": ("x", None)} for group in groups]}),
        "a text for a rate": saved(state | {"param_groups": [group | {"lr": "x"} for group in groups]}),
        "no rate": saved(state | {"param_groups": [group | {"lr": math.nan} for group in groups]}),
        "a scale": saved(state, scaler={"scale": 65536.0}),
        "two optimisers": saved(state, parts=[state, state]),
        "other groups": saved(state | {"param_groups": [group | {"params": [0]} for group in groups]}),
    }


def test_an_optimiser_s_state_of_any_other_kind_is_one_line_and_runs_nothing(trained, tmp_path):
    (tmp_path / "whole").mkdir()
    for name, contents in trained.run.save().items():
        write_bytes(tmp_path / "checkpoint" / name, contents)
    state = torch.load(tmp_path / "checkpoint/optimiser.pt", weights_only=True)
    assert len(state["parts"][0]["state"]) > 2
    for kind, contents in _optimisers(tmp_path / "touched", state).items():
        write_bytes(tmp_path / "checkpoint/optimiser.pt", contents)
        said = one_line(lambda: trained.run.load(tmp_path / "checkpoint"))
        assert said, kind
        assert "optimiser" in said, kind
    assert not (tmp_path / "touched").exists()


# what is too rare for chance


@pytest.mark.parametrize("version", ["../../../canary", "..", "/etc", "0123456789AB", "0123456789ab/..", ""])
def test_a_latest_json_that_leads_out_of_the_store_is_damaged(team, tmp_path, version):
    place = Path(shutil.copytree(team / "team", tmp_path / "team"))
    (place / "models/tiny/latest.json").write_text(json.dumps({"version": version}))
    with pytest.raises(
        UserError, match=r"latest\.json: damaged, or of another version of memoir \(version: .*publish again$"
    ):
        load_model(str(place / "models/tiny"), tmp_path)


@pytest.mark.parametrize("vgg", ["file:///etc/passwd", "/etc/passwd", "s3://other/vgg.safetensors"])
def test_a_published_model_fetches_no_other_file(tmp_path, vgg):
    """The network of a loss is needed by training alone."""
    recipe = RECIPE.replace(
        "{name: memnet, memory_blocks: 1, recursions: 1, channels: 2}",
        f"{{name: drcnet, width: 4, levels: 2, contrastive: {{vgg: {{path: '{vgg}'}}}}}}",
    ).replace("photos-jpeg", "rain-pairs")
    runs = untrained_run(tmp_path, recipe)
    trained = load_model("tiny", runs, store=str(tmp_path / "store"))
    with torch.inference_mode():
        assert trained.model.restore(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    assert trained.model._features is None


@pytest.mark.parametrize("image", ["../../../../canary/file", "a/../../b", "\x00"])
def test_a_table_of_scores_names_no_file_elsewhere(team, tmp_path, image):
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = Path(shutil.copytree(team, tmp_path / "sandbox"))
    row = {"dataset": "Classic5", "benchmark": "jpeg-q10", "image": image, "psnr": 1.0, "baseline_psnr": 1.0}
    pq.write_table(pa.Table.from_pylist([row]), place / "runs/tiny/scores.parquet")
    (place / "runs/tiny/pictures").mkdir()
    (place / "runs/tiny/curve.tsv").write_text("step\tloss\tpsnr\tval_psnr\n")
    with canary(tmp_path), pytest.raises(UserError, match=r"scores\.parquet: names an image"):
        write_report(["tiny"], place / "runs", place / "report")
