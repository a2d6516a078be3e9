"""Networks of one's own: found, checked, trained, and never imported for a stranger."""

import hashlib
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from conftest import photograph, untrained_run
from safetensors.torch import load_file
from torch import nn

from jobs import source
from jobs.evaluation.evaluate import evaluate, evaluate_recipe
from jobs.models import Network, Remembering, own
from jobs.origin import differences, digest, origin, own_source
from jobs.publishing.publish import publish
from jobs.recipe import BenchmarkRun, build_model, named_here, packed, read_recipe, resolved_model, trusts
from jobs.restoring.checkpoint import load_model
from jobs.restoring.restore import restore
from jobs.restoring.tiles import restore_plane
from jobs.training.loop import Run
from pipeline.errors import UserError
from pipeline.images import write_image

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
NET = """\
import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self, img_channel: int = 1, width=4, act: type = nn.ReLU, steps: tuple[int, ...] = (1, 2)):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(img_channel, width, 3, padding=1), act(), nn.Conv2d(width, img_channel, 1))

    def forward(self, lq):
        return lq + self.body(lq)


class Halving(Plain):
    size_multiple = 4

    def forward(self, lq):
        half = nn.functional.avg_pool2d(lq, 4)
        return nn.functional.interpolate(half, scale_factor=4) + self.body(lq)


class Normed(Plain):
    def __init__(self, img_channel: int = 1):
        super().__init__()
        self.body.insert(1, nn.BatchNorm2d(4))


class Idle(Plain):
    in_channels = 1

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Trained(Plain):
    receptive_field = 3

    def training_loss(self, batch):
        loss = ((self(batch["lq"]) - batch["gt"]).square().mean((1, 2, 3)) * batch["weight"]).sum() / batch["count"]
        return loss, {}


class Open(Plain):
    def __init__(self, first=1, /, *rest, width: int = 3, **more):
        super().__init__(**more)


class Larger(Plain):
    def forward(self, lq):
        return nn.functional.interpolate(lq, scale_factor=2)


class Wider(Plain):
    def forward(self, lq):
        return torch.cat((lq, lq), 1)


class Lists(Plain):
    def forward(self, lq):
        return [lq]


class Raises(Plain):
    def forward(self, lq):
        raise IndexError("no such layer")


class Even(Plain):
    def forward(self, lq):
        return nn.functional.interpolate(nn.functional.avg_pool2d(self.body(lq), 2), scale_factor=2)


class Unbuilt(Plain):
    def __init__(self, width: int = 1):
        raise ValueError(f"a width\\nof {width}")


class Frozen(nn.Module):
    def forward(self, lq):
        return lq


class Odd(Plain):
    size_multiple = 2.5


class Named(Plain):
    def __init__(self, name):
        super().__init__()


def function():
    pass
"""
RECIPE = """\
model: {name: "MODULE:CLASS"}
objective: {charbonnier: 1.0}
data: {task: photos-jpeg, patch: 12, stride: 8, dihedral: false, batch: 4}
optimisation: {optimiser: adam, lr: 0.001, schedule: cosine, length: {steps: 4}}
training: {workers: 2, seed: 3, log_every: 2, validate_every: 4, checkpoint_every: 2}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
"""
SCORES = {
    "images/jpeg-q10": {
        "psnr": 28.0,
        "ssim": 0.7,
        "images": 1,
        "protocol": "gray-float@1 (colour=grey)",
        "baseline": {"psnr": 27.0, "ssim": 0.6},
        "paper": {},
    }
}


@pytest.fixture
def module(tmp_path, monkeypatch) -> Iterator[str]:
    """The name of a module in the working directory, which is forgotten afterwards."""
    name = f"net_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield name
    for known in [known for known in sys.modules if known.split(".")[0] == name]:
        del sys.modules[known]


def recipe(module: str, cls: str = "Plain", old: str = "", new: str = "", *overrides: str):
    """A recipe with one piece of text replaced."""
    text = RECIPE.replace("MODULE", module).replace("CLASS", cls)
    assert old in text
    Path("mine.yaml").write_text(text.replace(old, new, 1))
    return read_recipe("mine.yaml", list(overrides))


def complaint(call: Callable[[], Any]) -> str:
    """The one line that this raises."""
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def data(builder) -> Path:
    rng = np.random.default_rng(0)
    names = [f"train/{i}.png" for i in range(2)] + ["val/0.png"]
    files = {name: rng.integers(40, 200, (5, 5, 1), np.uint8).repeat(4, 0).repeat(4, 1) for name in names}
    return builder("own", files, degradation={"kind": "jpeg", "quality": [10]})


# what is read


def test_the_arguments_of_the_class_are_the_keys_of_the_model(module):
    model = recipe(module, old='CLASS"}'.replace("CLASS", "Plain"), new='Plain", width: 7}').model
    assert model.model_dump() == {"name": f"{module}:Plain", "img_channel": 1, "width": 7, "steps": (1, 2)}
    assert build_model(model).body[0].out_channels == 7
    open_ended = recipe(module, "Open", 'Open"}', 'Open", img_channel: 3}').model
    assert build_model(open_ended).in_channels == 3


def test_a_module_of_a_package_is_found_and_annotations_that_are_text_are_read(module):
    Path(module + "_").mkdir()
    text = (
        f"from __future__ import annotations\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import x\n{NET}"
    )
    Path(module + "_/deep.py").write_text(text)
    with pytest.raises(UserError, match=r"mine.yaml:1: model.img_channel: Input should be a valid integer"):
        recipe(f"{module}_.deep", "Plain", 'Plain"}', 'Plain", img_channel: 1.5}')
    Path(module + "_/deeper.py").write_text(text.replace("img_channel: int", "img_channel: x.Y"))
    model = recipe(f"{module}_.deeper", "Plain", 'Plain"}', 'Plain", img_channel: 3}').model
    assert build_model(model).in_channels == 3
    assert list(source.files(model.name)) == [f"{module}_/deep.py", f"{module}_/deeper.py"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere:Net", "model.name: no module nowhere; put nowhere.py into FOLDER, or install it"),
        ("MODULE.deep:Net", "model.name: no module MODULE.deep; put MODULE/deep.py into FOLDER, or install it"),
        ("MODULE:Plian", "MODULE.py: has no class Plian; did you mean 'Plain'? known: "),
        ("MODULE:function", "model.name: function is no torch.nn.Module but function; name the network's class"),
        ("pathlib:Path", "model.name: Path is no torch.nn.Module but the class Path; name the network's class"),
        ("os:system", "model.name: system is no torch.nn.Module but "),
        ("MODULE:Named", "Named needs the argument 'name', which no key can give; rename it"),
        ("broken:Net", "the import of broken raises ZeroDivisionError: division by zero (FOLDER/broken.py:2)"),
        ("lacking:Net", "the import of lacking raises ModuleNotFoundError: No module named 'nonesuch' (FOLDER/lacking"),
        ("unread:Net", "the import of unread raises SyntaxError: invalid syntax (FOLDER/unread.py:1)"),
        ("leaving:Net", "the import of leaving raises SystemExit: 3 (FOLDER/leaving.py:1)"),
        ("a-b:Net", "unknown model 'a-b:Net'; known: drcnet, memnet, memorynet, timelapse; a network of your own is"),
        (":Net", "unknown model ':Net'; known: "),
    ],
)
def test_a_network_that_cannot_be_had_is_one_line_that_names_the_file(name, said, module, tmp_path):
    files = {"broken": "\n1 / 0", "lacking": "import nonesuch", "unread": "def (", "leaving": "raise SystemExit(3)"}
    for file, text in files.items():
        Path(f"{file}.py").write_text(text)
    line = complaint(lambda: recipe(module, "Plain", f"{module}:Plain", name.replace("MODULE", module)))
    assert line.startswith("mine.yaml: model.name: ")
    assert said.replace("MODULE", module).replace("FOLDER", str(tmp_path)) in line


def test_a_misspelt_option_and_an_argument_that_the_class_refuses_are_one_line(module):
    said = complaint(lambda: recipe(module, "Plain", 'Plain"}', 'Plain", widht: 3}'))
    assert said == "mine.yaml:1: model.widht: unknown key; did you mean 'width'? known: img_channel, name, steps, width"
    said = complaint(lambda: build_model(recipe(module, "Unbuilt").model))
    assert re.search(rf"model {module}:Unbuilt of .*{module}.py: its constructor raises ValueError: a width \(", said)
    said = complaint(lambda: build_model(recipe(module, "Odd").model))
    assert "size_multiple and receptive_field are whole numbers above 0" in said


def test_a_network_has_an_objective_of_its_own_or_one_of_the_recipe(module):
    objective = "objective: {charbonnier: 1.0}\n"
    said = complaint(lambda: recipe(module, "Plain", objective, ""))
    assert f"mine.yaml: objective: missing, and {module}:Plain has no training_loss; add e.g. " in said
    said = complaint(lambda: recipe(module, "Trained"))
    assert said == f"mine.yaml: objective: {module}:Trained has a training_loss of its own; leave out objective"
    assert recipe(module, "Trained", objective, "").objective is None
    said = complaint(lambda: recipe(module, "Plain", "charbonnier", "charbonier"))
    assert "mine.yaml:2: objective.charbonier: unknown key; did you mean 'charbonnier'?" in said
    assert "2: objective: give the weight of at least one" in complaint(
        lambda: recipe(module, "Plain", "charbonnier: 1.0", "")
    )
    assert "objective.ssim has windows of 11 pixels, and data.patch is 8" in complaint(
        lambda: recipe(module, "Plain", "charbonnier: 1.0", "ssim: 1", "data.patch=8")
    )
    text = RECIPE.replace("MODULE:CLASS", "memnet")
    Path("papers.yaml").write_text(text)
    assert "objective: memnet has a training_loss of its own" in complaint(lambda: read_recipe("papers.yaml"))
    Path("papers.yaml").write_text(text.replace(objective, ""))
    assert (
        "objective" not in read_recipe("papers.yaml").model_dump()
    )  # so that their runs and versions keep their names


def test_what_a_plain_network_lacks_it_is_given_and_its_weights_keep_their_names(module):
    model = build_model(recipe(module).model)
    assert (model.in_channels, model.size_multiple, model.receptive_field, model.inputs) == (1, 1, None, ("lq", "gt"))
    theirs = sys.modules[module].Plain()
    assert isinstance(model, type(theirs))
    assert type(model).__name__ == "Plain"
    assert list(model.state_dict()) == list(theirs.state_dict())
    trained = build_model(recipe(module, "Trained", "objective: {charbonnier: 1.0}\n", "").model)
    assert trained.receptive_field == 3


def test_a_network_of_even_sides_restores_images_of_any(module):
    model = build_model(recipe(module, "Halving").model).eval()
    x = torch.rand(1, 1, 13, 10)
    assert model.restore(x).shape == x.shape
    assert restore_plane(model, np.ones((7, 21, 1), np.float32)).shape == (7, 21, 1)


# training


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        ("Larger", "for images of (2, 1, 12, 12) it returns (2, 1, 24, 24); both must be the same"),
        ("Wider", "for images of (2, 1, 12, 12) it returns (2, 2, 12, 12); both must be the same"),
        ("Lists", "it returns list, and not a tensor of images"),
        ("Raises", "for images of (2, 1, 12, 12) it raises IndexError: no such layer ("),
        ("Even", "for images of (2, 1, 11, 9) it returns (2, 1, 10, 8); both must be the same; if its sides must be"),
        ("Frozen", "it has no parameters, so there is nothing to train"),
    ],
)
def test_a_network_that_would_not_do_is_told_before_the_run_begins(cls, said, module, data):
    line = complaint(lambda: Run(recipe(module, cls, "data: ", "data: "), data, CPU)) if cls != "Frozen" else ""
    if cls == "Frozen":  # its images have 3 channels
        line = complaint(lambda: own.try_out(build_model(recipe(module, cls).model), f"{module}:{cls}", 12, ranks=1))
    assert re.match(rf"model {module}:{cls} of \S*/{module}.py: ", line)
    assert said in line


def test_parameters_without_a_part_are_told_where_there_are_several_workers(module, data):
    options = recipe(module, "Idle")
    model = build_model(options.model, options.objective)
    said = complaint(lambda: own.try_out(model, f"{module}:Idle", 12, ranks=2))
    assert "spare.weight, spare.bias have no part in the result" in said
    Run(options, data, CPU)


def test_a_plain_network_trains_and_a_resumed_run_has_the_same_bits(module, data, tmp_path):
    options = recipe(module, "Halving", "{charbonnier: 1.0}", "{charbonnier: 1.0, ssim: 0.1, frequency: 0.01}")
    saved: dict[int, dict[str, bytes]] = {}
    whole = Run(options, data, CPU)
    whole.train(lambda run: saved.update({run.state.step: run.save()}), lambda _: None)
    assert {"loss", "psnr", "charbonnier", "ssim", "frequency"} <= set(whole.records[0])
    assert whole.records[0]["loss"] == pytest.approx(
        sum(w * whole.records[0][k] for k, w in options.objective.terms.items()), rel=1e-5
    )
    for name, contents in saved[2].items():
        (tmp_path / name).write_bytes(contents)
    resumed = Run(options, data, CPU)
    resumed.load(tmp_path)
    resumed.train(lambda run: saved.update({-run.state.step: run.save()}), lambda _: None)
    assert saved[-4]["model.safetensors"] == saved[4]["model.safetensors"]
    other = Run(recipe(module, "Halving", "{charbonnier: 1.0}", "{l1: 1.0}"), data, CPU)
    assert "was trained with objective.charbonnier=1.0, and the recipe says None" in complaint(
        lambda: other.load(tmp_path)
    )


def test_an_edit_of_the_source_is_a_new_run_that_says_so(module):
    before = origin(recipe(module), "shards")
    assert origin(recipe(module), "shards") == before
    assert before["objective"] == {"charbonnier": 1.0}
    file = Path(f"{module}.py")
    file.write_text(file.read_text() + "\n# another\n")
    after = origin(recipe(module), "shards")
    assert digest(after) != digest(before)
    assert differences(before, after) == [f"code: {module}.py"]
    assert own_source(after) != own_source(before)
    paper = read_recipe("memnet-jpeg-sample")
    assert own_source(origin(paper, "shards")) is None
    assert not any("own" in path or "objective" in path for path in origin(paper, "shards")["code"])


def test_another_process_imports_the_source_that_was_sent_and_not_what_lies_there(module, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / f"{module}.py").write_text("raise SystemExit('the wrong one')")
    sent = packed(recipe(module, "Plain", 'Plain"}', 'Plain", width: 7}'))
    (tmp_path / "sent").write_text(repr(sent))
    program = (
        "import sys; from pathlib import Path; from jobs.recipe import build_model, unpacked;"
        f"recipe = unpacked(eval(Path({str(tmp_path / 'sent')!r}).read_text()));"
        "print(build_model(recipe.model, recipe.objective).body[0].out_channels, recipe.objective.terms)"
    )
    root = str(Path(source.__file__).parents[1])
    (tmp_path / "empty").mkdir()
    for folder in (there, tmp_path, tmp_path / "empty"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "7 {'charbonnier': 1.0}"
    assert packed(read_recipe("memnet-jpeg-sample"))["source"] == {}


def test_a_file_among_memoirs_own_is_sent_alone(module):
    name = f"jobs.models.{module}:Plain"
    source.receive(name, {f"jobs/models/{module}.py": NET.encode()})
    try:
        assert source.load(name).__module__ == f"jobs.models.{module}"
        assert list(source.files(name)) == [f"jobs/models/{module}.py"]
    finally:
        sys.modules.pop(f"jobs.models.{module}", None)


def rank(index: int, folder: Path, data: Path) -> None:
    """One of two gloo ranks that train mine.yaml; leaves its buffers and records in folder/<index>.pt."""
    os.chdir(folder)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    run = Run(read_recipe("mine.yaml"), data, CPU)
    run.train(lambda _: None, lambda _: None)
    records = [{key: record[key] for key in ("step", "val_psnr") if key in record} for record in run.records]
    torch.save({"buffers": list(run.model.buffers()), "records": records}, folder / f"{index}.pt")
    dist.destroy_process_group()


def test_statistics_that_each_rank_takes_of_its_own_samples_are_validated_as_they_are_saved(module, data, tmp_path):
    recipe(module, "Normed")
    torch.multiprocessing.spawn(rank, (tmp_path, data), nprocs=2)
    first, second = (torch.load(tmp_path / f"{index}.pt") for index in range(2))
    assert first["buffers"]
    assert all(torch.equal(a, b) for a, b in zip(first["buffers"], second["buffers"], strict=True))
    assert first["records"] == second["records"]


# trust


HOSTILE = ["os:system", "subprocess:Popen", "antigravity:x", "canary:Net", "jobs.restoring.restore:restore"]


@pytest.fixture
def trained(module, tmp_path) -> Path:
    """The runs of a trained and evaluated recipe tiny.yaml of one's own."""
    text = RECIPE.replace("MODULE", module).replace("CLASS", "Plain")
    runs = untrained_run(tmp_path, text, metrics={"step": 6, "loss": 0.1}, scores=SCORES)
    write_image(tmp_path / "images/a.png", photograph(0, 20, 24, 1))
    return runs


def hostile(version: Path, name: str) -> None:
    """Have the recipe of a published version name this network."""
    held = yaml.safe_load((version / "recipe.yaml").read_text())
    held["model"]["name"] = name
    (version / "recipe.yaml").write_text(yaml.safe_dump(held))
    names = sorted(path.name for path in version.iterdir() if path.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256((version / each).read_bytes()).hexdigest()}  {each}\n" for each in names]
    (version / "SHA256SUMS").write_text("".join(sums))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_published_recipe_that_names_code_has_nothing_imported(name, trained, tmp_path, monkeypatch):
    version = Path(publish("tiny.yaml", str(tmp_path / "team"), trained)["uri"])
    hostile(version, name)
    Path("canary.py").write_text("from pathlib import Path\nPath('harmed').write_text('')\n")
    monkeypatch.setattr(own, "load", None)
    before = set(sys.modules)
    calls = (
        lambda: load_model(str(version), trained),
        lambda: list(restore(str(version), Path("images/a.png"), Path("out.png"), trained)),
        lambda: evaluate(str(version), BenchmarkRun(benchmark="jpeg-q10", data="images"), trained),
    )
    for call in calls:
        said = complaint(call)
        assert f"its network is {name}, code that is not memoir's" in said
        assert f"--trust {name}" in said
    assert not {"antigravity", "canary"} & (set(sys.modules) - before)
    assert not Path("harmed").exists()


def test_a_checkpoint_of_ones_own_is_loaded_where_a_recipe_file_names_its_network(trained, tmp_path, module):
    assert load_model("tiny.yaml", trained).model.in_channels == 1
    said = complaint(lambda: load_model("tiny", trained))  # the file is not in jobs/recipes
    assert f"--trust {module}:Plain, or have a recipe that names it in jobs/recipes, or as the YAML file that" in said
    for trust in (f"{module}:Plain", module):
        assert load_model("tiny", trained, [trust]).model.in_channels == 1
    assert "its network is" in complaint(lambda: load_model("tiny", trained, [f"{module}:Halving", "os", module[:-1]]))
    text = Path("tiny.yaml").read_text()
    Path("tiny.yaml").write_text(text.replace(":Plain", ":Halving"))
    assert "its network is" in complaint(lambda: load_model("tiny.yaml", trained))
    Path("tiny.yaml").write_text(text)
    evaluate_recipe("tiny.yaml", trained)
    assert json.loads((trained / "tiny/scores.json").read_text()).keys() == {f"{tmp_path.name}/jpeg-q10"}
    assert "its network is" in complaint(lambda: publish("tiny", str(tmp_path / "team"), trained))


def test_a_recipe_of_that_name_in_the_repository_is_trusted_without_being_imported(module, tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.recipe.RECIPES", tmp_path)
    Path("tiny.yaml").write_text(RECIPE.replace("MODULE:CLASS", "canary:Net"))
    assert named_here("store/models/tiny/0123456789ab", "tiny") == {"canary:Net"}
    assert "canary" not in sys.modules
    assert named_here("elsewhere", "other") == set()


def test_trust_is_in_a_class_a_module_or_a_package():
    assert all(trusts("a.b:C", [each]) for each in ("a.b:C", "a.b", "a"))
    assert not any(trusts("a.b:C", [each]) for each in ("a.b:D", "a.c", "b", "", "a.b:", "a.b:CC"))


def test_the_command_line_restores_with_a_network_that_it_is_told_to_trust(trained, tmp_path, module, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    version = publish("tiny.yaml", str(tmp_path / "team"), trained)["uri"]
    code, _, error = cli("restore", "images/a.png", "out.png", "--model", version)
    assert (code, error.count("\n")) == (1, 1)
    assert cli("restore", "images/a.png", "out.png", "--model", version, "--trust", f"{module}:Plain")[0] == 0
    assert Path("out.png").exists()
    arguments = ["--model", version, "--benchmark", "jpeg-q10", "--data", "images"]
    assert cli("evaluate", *arguments)[0] == 1
    assert cli("evaluate", *arguments, "--trust", module)[0] == 0


def test_the_card_and_the_provenance_name_network_options_and_source(trained, tmp_path, module):
    pointer = trained / "tiny/checkpoint.json"
    pointer.write_text(json.dumps(json.loads(pointer.read_text()) | {"source": "ab" * 32}))
    version = Path(publish("tiny.yaml", str(tmp_path / "team"), trained)["uri"])
    network = json.loads((version / "provenance.json").read_text())["network"]
    options = {"img_channel": 1, "width": 4, "steps": [1, 2]}
    assert network == {"name": f"{module}:Plain", "options": options, "source": "ab" * 32}
    card = (version / "card.md").read_text()
    assert f"class `Plain` of the Python module `{module}`" in card
    assert "img_channel 1, width 4, steps [1, 2]" in card
    assert "ab" * 32 in card
    assert f"--trust {module}:Plain" in card


def test_weights_of_another_source_are_told(trained, tmp_path, module, capsys):
    pointer = trained / "tiny/checkpoint.json"
    held = json.loads(pointer.read_text()) | {"source": source.present_digest(f"{module}:Plain")}
    pointer.write_text(json.dumps(held))
    version = publish("tiny.yaml", str(tmp_path / "team"), trained)["uri"]
    for reference in ("tiny.yaml", version):
        load_model(reference, trained, [module])
    assert capsys.readouterr().err == ""
    Path(f"{module}.py").write_text(NET + "# edited\n")
    for reference in ("tiny.yaml", version):
        load_model(reference, trained, [module])
        assert "here is not the one that it was trained with; results may differ\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["memnet-jpeg", "memorynet-deblur", "timelapse-derain", "drcnet-derain"])
def test_the_papers_models_are_networks(name):
    with torch.device("meta"):
        model = build_model(read_recipe(name).model)
    assert isinstance(model, nn.Module)
    for attribute in vars(Network):
        assert attribute.startswith("_") or hasattr(model, attribute)
    assert isinstance(model, Remembering) == name.startswith(("memorynet", "timelapse"))


def test_a_network_of_a_public_library_is_one_of_ones_own(module):
    """NAFNet as spandrel has it (pip install memoir[spandrel]), where its torchvision fits the torch that is here."""
    try:
        source.load("spandrel.architectures.NAFNet:NAFNet")
    except UserError as error:
        pytest.skip(str(error))
    keys = 'NAFNet", img_channel: 1, width: 4, enc_blk_nums: [1], dec_blk_nums: [1]}'
    model = build_model(recipe("spandrel.architectures.NAFNet", "NAFNet", 'NAFNet"}', keys).model).eval()
    assert model.in_channels == 1
    assert model.restore(torch.rand(1, 1, 9, 13)).shape == (1, 1, 9, 13)
    assert "intro.weight" in model.state_dict()


def test_a_constructor_that_needs_real_tensors_is_restored_with_too(module, tmp_path):
    rates = "[float(x) for x in torch.linspace(0, 0.1, 3)]"
    Path(f"{module}.py").write_text(NET.replace("super().__init__()\n", f"super().__init__()\n        {rates}\n", 1))
    text = RECIPE.replace("MODULE", module).replace("CLASS", "Plain")
    runs = untrained_run(tmp_path, text)
    held = load_file(next(tmp_path.glob("store/runs/*/*/model.safetensors")))
    loaded = load_model("tiny.yaml", runs).model.state_dict()
    assert all(torch.equal(held[name], loaded[name]) for name in held)


def test_a_resolved_recipe_of_another_version_of_the_class_is_one_line(module):
    held = {"model": {"name": f"{module}:Plain", "depth": 3}}
    assert "model" in complaint(lambda: resolved_model(held, [module]))


# the example


def example() -> tuple[str, str]:
    """The network and the recipe of CONTRIBUTING.md."""
    text = (Path(source.__file__).parents[1] / "CONTRIBUTING.md").read_text()
    section = text.partition("## A network of your own")[2].partition("\n## ")[0]
    (network,), (settings,) = (re.findall(rf"```{kind}\n(.*?)```", section, re.S) for kind in ("python", "yaml"))
    return network, settings


def test_the_example_of_contributing_is_ten_lines_each_and_trains(module, builder):
    network, settings = example()
    for text in (network, settings):
        assert len([line for line in text.splitlines() if line.strip()]) <= 10
    Path(f"{module}.py").write_text(network)
    Path("mine.yaml").write_text(settings.replace("mynet:", f"{module}:"))
    options = read_recipe("mine.yaml", ["data.patch=16", "optimisation.length={steps: 1}", "training.validate_every=1"])
    rng = np.random.default_rng(0)
    files = {f"{split}/0.png": rng.integers(0, 255, (24, 32, 3), np.uint8) for split in ("train", "val")}
    data = builder("own-rgb", files, colour="rgb", degradation={"kind": "noise", "sigma": [30]})
    run = Run(options, data, CPU)
    before = [parameter.clone() for parameter in run.model.parameters()]
    run.train(lambda _: None, lambda _: None)
    assert run.state.step == 1
    assert not any(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert isinstance(run.model, nn.Module)
