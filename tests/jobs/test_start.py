"""Training that starts from other weights: which are taken, what the run is called, and that it keeps them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from caffe_files import caffemodel
from conftest import TINY_PARAMS, photograph, tiny_photographs
from safetensors.torch import load_file, save_file
from test_import_memnet import release

from jobs.documents import Began, Pointer, check_document
from jobs.origin import begin
from jobs.publishing.publish import models
from jobs.recipe import Recipe, build_model, read_recipe
from jobs.training import submit
from jobs.training import train as stage
from jobs.training.going_on import going_on
from jobs.training.loop import Run
from jobs.training.record import recorded
from jobs.training.resume import SUMS, Checkpoints
from jobs.training.run import Planned, plan_run
from jobs.training.start import FILE, keep_start, keeper, load_start, read_start, reader
from jobs.training.train import train
from jobs.training.worker import Rank
from pipeline.errors import UserError
from pipeline.images import write_image
from pipeline.shards.format import file_sha256
from pipeline.storage import storage

RECIPE = """
model: {name: memnet, memory_blocks: 2, recursions: 1, channels: 4}
data: {task: tiny, patch: 12, stride: 8, batch: 4}
optimisation: {optimiser: adam, lr: 0.001, schedule: cosine, length: {steps: 3}}
training: {workers: 1, log_every: 1}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
"""
CPU = torch.device("cpu")
WIDER = ["model.channels=8"]

pytestmark = pytest.mark.usefixtures("one_thread")


def train_rank(planned: Planned, recipe: Recipe, folder: Path) -> str:
    """What the one rank of a run does, in this process: from a checkpoint, or from other weights, or from the beginning."""
    checkpoints = Checkpoints(planned.place, keep_last=2, keep_best=1)
    run = Run(recipe, planned.built.root, CPU)
    if checkpoints.newest(folder / "newest", print):
        run.load(folder / "newest")
    else:
        load_start(run.model, planned.place, folder)
    run.train(lambda run: checkpoints.save(run.state.step, run.save(), run.scores, {}), lambda record: None)
    beside = {"metrics.jsonl": "".join(json.dumps(record) + "\n" for record in run.records).encode()}
    checkpoints.finish(run.state.step, run.scores, beside)
    return checkpoints.name(run.state.step)


@pytest.fixture
def project(builder, tmp_path, monkeypatch) -> Path:
    """A project that trains `tiny` in this process, without Ray; returns the folder of built datasets."""
    data = builder("start", {f"train/{i}.png": photograph(i, 20, 20, 1) for i in range(2)}).parent
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(json.dumps(TINY_PARAMS))
    Path("tiny.yaml").write_text(RECIPE)
    write_image(Path("images/one.png"), photograph(7, 24, 20, 1))
    monkeypatch.setattr(stage, "_train_here", lambda planned, recipe: train_rank(planned, recipe, tmp_path / "copies"))
    return data


def trained(data: Path, start: str | None = None, partial: bool = False, **how) -> dict:
    begins = reader(start, Path("runs"), "store", partial=partial)
    return train("tiny.yaml", data=str(data), store="store", runs=Path("runs"), begins=begins, **how)


def loss(pointer: dict, step: int = 1) -> float:
    lines = Path("store", "runs", pointer["run"], "metrics.jsonl").read_text().splitlines()
    return next(record["loss"] for record in map(json.loads, lines) if record["step"] == step and "loss" in record)


def weights(pointer: dict) -> dict[str, torch.Tensor]:
    return load_file(Path("store", pointer["checkpoint"], "model.safetensors"))


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_option_that_changes_no_weights_is_no_other_run(project):
    with pytest.raises(UserError, match=r"--set model\.predict_at=1: changes no weights; .*memoir evaluate"):
        plan_run("tiny.yaml", data=str(project), store="store", overrides=["model.predict_at=1"])


def test_a_run_starts_from_the_weights_of_another(project):
    first = trained(project)
    frozen = trained(project, start="tiny", overrides=["optimisation.lr=1e-30"])
    parameters = {
        name: tensor for name, tensor in weights(first).items() if "running" not in name and "num" not in name
    }
    found = weights(frozen)
    assert equal(parameters, {name: found[name] for name in parameters})  # it moved none of them
    assert loss(frozen) < loss(first)
    assert frozen["run"].startswith("tiny-")
    check_document(frozen, Pointer, "", "")
    (folder,) = Path("runs").glob("tiny+lr=1e-30+from=*")
    assert folder.name.endswith(f"+from={frozen['started_from'][:8]}")  # beside runs/tiny, which stays


def test_whose_weights_a_run_starts_from_is_part_of_its_name(project):
    begun = plan_run("tiny.yaml", data=str(project), store="store")
    trained(project)
    again = trained(project, overrides=["training.seed=1"])

    def planned(reference: str, *, partial: bool = False) -> Planned:
        begins = reader(reference, Path("runs"), "store", partial=partial)
        return plan_run("tiny.yaml", data=str(project), store="store", begins=begins)

    names = [begun.run, planned("tiny").run, planned("tiny+seed=1").run]
    assert len(set(names)) == 3
    assert planned("tiny", partial=True).run == names[1]  # all of it fits: the same weights
    save_file(weights(again), "copy.safetensors")
    assert planned("copy.safetensors").run == names[2]  # the same weights, wherever they come from
    assert planned("tiny").variant == f"tiny+from={planned('tiny').origin['started_from'][:8]}"
    assert "started_from" not in begun.origin  # and the names of runs without are what they were


def test_a_run_that_continues_has_its_own_weights(project, monkeypatch):
    trained(project)
    length = ["optimisation.length={steps: 6}", "training.checkpoint_every=2"]
    whole = trained(project, start="tiny", overrides=length)
    place = Path("store/runs", whole["run"])
    expected = weights(whole)
    for name in ("step-00000006", "done.json"):  # killed after step 4
        path = place / name
        path.unlink() if path.is_file() else [each.unlink() for each in path.iterdir()]
    save_file({"wrong": torch.zeros(1)}, place / FILE)  # no longer needed
    monkeypatch.setattr("jobs.training.start.FILE", "gone")
    assert trained(project, start="tiny", overrides=length)["run"] == whole["run"]
    assert equal(weights(whole), expected)


def test_a_rank_takes_them_where_there_is_no_checkpoint_and_says_so(project, tmp_path):
    trained(project)
    planned = plan_run(
        "tiny.yaml",
        data=str(project),
        store="store",
        begins=reader("tiny", Path("runs"), "store"),
        overrides=["training.seed=5"],
    )
    keep_start(planned.place, planned.start)
    begin(planned.store, planned.name, planned.origin)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        rank = Rank.__new__(Rank)  # its constructor belongs to Ray
        rank.snapshots = None
        rank.store, rank.first, rank.run = planned.place, True, Run(planned.recipe, planned.built.root, CPU)
        rank.checkpoints = Checkpoints(planned.place, keep_last=1, keep_best=0)
        assert rank.resume() == f"other weights ({planned.start.sha256[:16]})"
        assert equal(rank.run.model.state_dict(), weights(json.loads(Path("runs/tiny/checkpoint.json").read_text())))
        rank.checkpoints.save(0, Run(planned.recipe, planned.built.root, CPU).save(), {}, {})
        rank.checkpoints.wait()
        assert rank.resume() == "step-00000000"
        assert not equal(
            rank.run.model.state_dict(), weights(json.loads(Path("runs/tiny/checkpoint.json").read_text()))
        )
    finally:
        dist.destroy_process_group()


def test_a_job_on_a_cluster_has_the_weights_from_the_store(project, capsys):
    trained(project)
    begins = reader("tiny", Path("runs"), "store", partial=True)
    planned = plan_run("tiny.yaml", data=str(project), store="store", overrides=WIDER, begins=begins)
    sent = []

    class Cluster:
        def list_jobs(self):
            return []

        def submit_job(self, **job):
            sent.append(job)

    submit.submit(planned, Cluster())
    assert f"--run {planned.run} " in sent[0]["entrypoint"]
    assert "--from" not in sent[0]["entrypoint"]
    kept = Path("store/runs", planned.run, FILE)
    assert kept.read_bytes() == planned.start.files[FILE]
    told = recorded(planned.place)[0]
    check_document(told, Began, "", "")
    assert told["started_from"] == planned.start.told()
    Path("runs/tiny/checkpoint.json").unlink()  # the cluster has the store alone
    there = plan_run(
        "tiny.yaml", data=str(project), store="store", overrides=WIDER, begins=keeper(f"store/runs/{planned.run}")
    )
    assert (there.run, there.start) == (planned.run, None)
    pointer = trained(project, run=planned.run, overrides=WIDER)
    assert pointer["started_from"] == planned.start.sha256
    kept.unlink()
    with pytest.raises(UserError, match="here it is the run"):
        trained(project, run=planned.run, overrides=WIDER)


def test_a_part_of_the_weights_is_taken_and_the_rest_is_named(project, capsys):
    first = trained(project)
    overrides = ["model.memory_blocks=3", "optimisation.lr=1e-30"]
    with pytest.raises(UserError) as error:
        trained(project, start="tiny", overrides=overrides)
    text = str(error.value)
    assert "1 tensors of another shape: ensemble (2,) and not (3,)" in text
    assert "tensors missing: blocks.2." in text
    assert text.endswith("--from-partial takes what fits")
    capsys.readouterr()
    grown = trained(project, start="tiny", partial=True, overrides=overrides)
    said = capsys.readouterr().err
    own = build_model(read_recipe("tiny.yaml", overrides).model).state_dict()
    fresh = {name for name in own if name == "ensemble" or re.match(r"blocks\.2\.|recon_bn\.2\.", name)}
    told = re.findall(r"^tiny: (\S+) \(.*\) starts from its initialisation", said, re.M)
    assert set(told) == fresh
    assert "ensemble (3,) starts from its initialisation, which there is (2,)" in said
    began = recorded(storage(f"store/runs/{grown['run']}"))[0]["started_from"]
    assert (set(began["fresh"]), began["weights"]) == (fresh, first["sha256"])
    torch.manual_seed(0)  # the seed of the recipe
    initial = build_model(read_recipe("tiny.yaml", overrides).model).state_dict()
    found, parent = weights(grown), weights(first)
    for name in found:
        if "running" not in name and "num_batches" not in name:
            expected = initial[name] if name in fresh else parent[name]
            assert torch.allclose(found[name], expected, rtol=0, atol=1e-25), name
    smaller = ["model.memory_blocks=1"]
    trained(project, start="tiny", partial=True, overrides=smaller)
    said = capsys.readouterr().err
    assert "tiny: blocks.1.conv_a.weight (4, 4, 3, 3) is not taken, the recipe's network has none" in said


def test_a_version_or_a_file_of_a_release_is_a_start_too(project, cli):
    Path("M2R1.caffemodel").write_bytes(caffemodel(release(2, 1, 4)))
    assert cli("import", "M2R1.caffemodel", "--as", "tiny.yaml", "--data", str(project))[0] == 0
    (held,) = models("store")
    number = held["version"]
    expected = load_file(f"{held['uri']}/model.safetensors")
    recipe = read_recipe("tiny.yaml")
    references = ["M2R1.caffemodel", "store/models/tiny", f"store/models/tiny/{number}", "store/models/tiny@latest"]
    for reference in [*references, "tiny@latest", f"tiny@{number}"]:
        start = read_start(reference, recipe, Path("runs"), "store", partial=False)
        model = build_model(recipe.model)
        place = storage(f"kept/{len(list(Path().glob('kept/*')))}")
        keep_start(place, start)
        place.write("run.json", json.dumps({"started_from": start.sha256}).encode())
        Path("copy").mkdir(exist_ok=True)
        assert load_start(model, place, Path("copy")) == start.sha256
        assert equal(expected, model.state_dict()), reference
        assert start.name == ("M2R1.caffemodel" if reference == references[0] else held["uri"])


def test_a_published_version_says_what_it_started_from_and_is_evaluated(project, cli):
    trained(project)
    pointer = trained(project, start="tiny")
    name = f"tiny.yaml+from={pointer['started_from'][:8]}"
    for command in ("evaluate", "publish"):
        arguments = ["--model", name] if command == "evaluate" else [name]
        code, _, err = cli(command, *arguments)
        assert code == 0, err
    (held,) = models("store")
    assert held["recipe"] == f"tiny+from={pointer['started_from'][:8]}"
    start = held["lineage"]["started_from"]
    assert start["sha256"] == pointer["started_from"]
    assert f"| it started from | {start['name']} (`{start['weights']}`) |" in Path(held["uri"], "card.md").read_text()
    code, _, err = cli("reproduce", f"{held['recipe']}/{held['version']}")
    assert code == 1
    assert "started from other weights" in err


def test_weights_that_are_lost_or_changed_in_the_run_s_folder_are_one_line(tmp_path):
    model = build_model(read_recipe_of(tmp_path).model)
    place = storage(str(tmp_path / "run"))
    assert load_start(model, place, tmp_path) is None
    place.write("run.json", json.dumps({"shards": "s"}).encode())
    assert load_start(model, place, tmp_path) is None
    place.write("run.json", json.dumps({"started_from": "a" * 64}).encode())
    with pytest.raises(UserError, match=r"start.safetensors: missing; give --from again"):
        load_start(model, place, tmp_path)
    place.write("run.json", json.dumps({"started_from": [1]}).encode())
    with pytest.raises(UserError, match=r"run.json: damaged.*started_from"):
        load_start(model, place, tmp_path)
    place.write("run.json", json.dumps({"started_from": "a" * 64}).encode())
    place.write(FILE, b"other")
    with pytest.raises(UserError, match=r"start.safetensors: damaged \(its sha256 is not aaaaaaaaaaaaaaaa"):
        load_start(model, place, tmp_path)


def read_recipe_of(folder: Path) -> Recipe:
    (folder / "tiny.yaml").write_text(RECIPE)
    return read_recipe(str(folder / "tiny.yaml"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--from", "nothing"], "no model 'nothing' in runs; "),
        (["--from", "none.pth"], "none.pth: not found"),
        (["--from", "tiny@none"], "no version is called none|nor any in|no published model"),
        (["--from", "strange.safetensors"], r"its tensors \(x\) are of no release"),
        (["--from", "strange.safetensors", "--from-partial"], "no tensor of it fits the recipe's network; 62 tensors missing"),
        (["--from-partial"], "--from-partial: belongs to --from VERSION"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(options, said, project, cli):
    save_file({"x": torch.zeros(3)}, "strange.safetensors")
    code, _, err = cli("train", "tiny.yaml", "--data", str(project), *options)
    assert code == 1
    assert err.count("\n") == 1
    assert re.search(said, err), err
    assert not Path("store/runs").exists()


@pytest.mark.slow
def test_the_workers_of_ray_start_from_the_weights(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    tiny_photographs(tmp_path)
    task = {
        "colour": "y",
        "degradation": {"kind": "jpeg", "quality": [10]},
        "splits": {"train": ["photos/train"]},
        "shard_bytes": 65536,
    }
    Path("tasks").mkdir()
    for name, content in (("params", TINY_PARAMS), ("tasks/tiny", task)):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    Path("tiny.yaml").write_text(RECIPE.replace("workers: 1", "workers: 2"))
    for command in (["ingest"], ["build", "tasks/tiny.yaml", "--cpus", "1"]):
        assert cli(*command)[0] == 0
    model = build_model(read_recipe("tiny.yaml").model)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, "parent.safetensors")
    command = [sys.executable, "-m", "memoir", "train", "tiny.yaml", "--from", "parent.safetensors"]
    # an average begins with them, too: with the untrained weights it would still be theirs to 99.9 % after a step
    still = ["--set", "optimisation.lr=1e-30", "--set", "optimisation.ema={decay: 0.999, warmup: false}"]
    done = subprocess.run([*command, *still], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (pointer,) = Path("runs").glob("tiny*/checkpoint.json")
    found = weights(json.loads(pointer.read_text()))
    assert re.search("2 workers, from other weights", done.stdout + done.stderr)
    for name, parameter in model.named_parameters():
        assert float((found[name] - parameter).abs().max()) < 1e-25, name  # a step of 1e-30 tells in what was 0


CONSTANT = "optimisation.schedule=constant"


def gone_on(data: Path, model: str, *overrides: str) -> dict:
    before = going_on(model, Path("runs"), "store", list(overrides))
    return train(
        before.recipe,
        data=str(data),
        store="store",
        runs=Path("runs"),
        overrides=before.overrides,
        begins=before.begins,
    )


def test_a_finished_run_goes_on_to_the_bit_as_a_run_of_its_own(project, monkeypatch):
    monkeypatch.setattr("jobs.recipe.RECIPES", Path())
    monkeypatch.setattr("jobs.variant.RECIPES", Path())
    short, long = (trained(project, overrides=[CONSTANT, f"optimisation.length.steps={n}"]) for n in (3, 6))
    before = weights(short)
    on = gone_on(project, "tiny+length.steps=3+schedule=constant", "optimisation.length.steps=6")
    assert (on["step"], equal(weights(on), weights(long)), equal(weights(short), before)) == (6, True, True)
    assert len({short["run"], long["run"], on["run"]}) == 3
    told = recorded(storage(f"store/runs/{on['run']}"))[0]
    check_document(told, Began, "", "")
    assert told["started_from"]["step"] == 3
    assert told["started_from"]["name"].endswith(short["checkpoint"])
    steps = [
        json.loads(line)["step"] for line in Path("store/runs", on["run"], "metrics.jsonl").read_text().splitlines()
    ]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5, 6]  # with the history of the run before
    (variant,) = Path("runs").glob("tiny+length.steps=6*+from=*")
    further = gone_on(project, variant.name, "optimisation.length.steps=8", "optimisation.lr=1e-4")
    assert further["step"] == 8
    assert gone_on(project, variant.name, "optimisation.length.steps=8", "optimisation.lr=1e-4") == further


def test_a_job_on_a_cluster_goes_on_from_what_is_in_the_store(project, monkeypatch):
    monkeypatch.setattr("jobs.recipe.RECIPES", Path())
    trained(project)
    length = "optimisation.length.steps=5"
    before = going_on("tiny", Path("runs"), "store", [length])
    planned = plan_run("tiny", data=str(project), store="store", overrides=before.overrides, begins=before.begins)
    keep_start(planned.place, planned.start)
    Path("runs/tiny/checkpoint.json").unlink()
    pointer = trained(project, run=planned.run, overrides=[length])
    assert (pointer["run"], pointer["step"], pointer["started_from"]) == (planned.run, 5, planned.start.sha256)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], r"^tiny: has trained its 3 steps; say how far it goes on, with --set optimisation\.length\.steps=6, or "),
        (["optimisation.length.steps=3"], r"optimisation\.length: 3 steps, and .* has trained 3; give more$"),
        (["optimisation.length.steps=9", "data.batch=8"], r"^--set data\.batch: a run that goes on keeps it"),
        (["optimisation.length.steps=9", "optimisation.optimiser=sgd"], r"^--set optimisation\.optimiser: a run"),
        (["optimisation.length.steps=9", "training.seed=1"], r"^--set training\.seed: a run"),
        (["optimisation.length.stops=9"], r"optimisation\.length\.stops"),
    ],
)
def test_a_run_that_cannot_go_on_is_one_line_before_anything_starts(overrides, says, project, monkeypatch):
    monkeypatch.setattr("jobs.recipe.RECIPES", Path())
    trained(project)
    there = sorted(Path("store/runs").iterdir())
    with pytest.raises(UserError, match=says) as error:
        gone_on(project, "tiny", *overrides)
    assert "\n" not in str(error.value)
    assert sorted(Path("store/runs").iterdir()) == there


def test_a_run_whose_length_is_in_epochs_goes_on_for_more_of_them(project, monkeypatch):
    monkeypatch.setattr("jobs.recipe.RECIPES", Path())
    Path("tiny.yaml").write_text(RECIPE.replace("steps: 3", "epochs: 1").replace("stride: 8", "stride: 16"))
    step = trained(project)["step"]
    with pytest.raises(UserError, match=r"^optimisation\.length: 1 epochs, and .* has trained 1; give more$"):
        gone_on(project, "tiny", "optimisation.length.epochs=1")
    assert gone_on(project, "tiny", "optimisation.length.epochs=2")["step"] == 2 * step


def test_a_run_of_a_version_of_memoir_that_had_fewer_keys_goes_on(project, monkeypatch):
    monkeypatch.setattr("jobs.recipe.RECIPES", Path())
    folder = Path("store", trained(project)["checkpoint"])
    saved = json.loads((folder / "recipe.json").read_text())
    for section, key in (("optimisation", "compile"), ("data", "mix"), ("training", "snapshot_every")):
        del saved[section][key]

    def rewritten(recipe: dict) -> None:
        (folder / "recipe.json").write_text(json.dumps(recipe))
        names = [path.name for path in sorted(folder.iterdir()) if path.name != SUMS]
        (folder / SUMS).write_text("".join(f"{file_sha256(folder / name)}  {name}\n" for name in names))

    rewritten(saved)
    assert gone_on(project, "tiny", "optimisation.length.steps=5")["step"] == 5
    rewritten(saved | {"optimisation": {"lr": 0.1}})
    with pytest.raises(
        UserError, match=r"its recipe is of another version of memoir \(optimisation\.optimiser\); start"
    ):
        gone_on(project, "tiny", "optimisation.length.steps=6")


def test_a_recipe_that_has_changed_since_and_a_checkpoint_that_is_gone_are_one_line(project, monkeypatch):
    monkeypatch.setattr("jobs.recipe.RECIPES", Path())
    pointer = trained(project)
    Path("tiny.yaml").write_text(RECIPE.replace("channels: 4", "channels: 6"))
    with pytest.raises(UserError, match=r"the recipe here is another one than .*: model\.channels: 4 there, 6 here$"):
        gone_on(project, "tiny", "optimisation.length.steps=9")
    Path("tiny.yaml").write_text(RECIPE)
    Path("store", pointer["checkpoint"], "optimiser.pt").unlink()
    with pytest.raises(UserError, match=r"the run before cannot go on without it$"):
        gone_on(project, "tiny", "optimisation.length.steps=9")
