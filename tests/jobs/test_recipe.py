import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from jobs.evaluation.benchmark import benchmark
from jobs.models.memnet import MemNet
from jobs.options import MODELS
from jobs.origin import CODE, OWN
from jobs.recipe import RECIPES, Optimisation, Span, build_model, packed, read_recipe, unpacked
from jobs.training.optimiser import learning_rate
from pipeline.config import bare_name
from pipeline.errors import UserError
from pipeline.layouts import layout
from pipeline.sampling.patches import RandomCrops
from pipeline.task import read_task

TEXT = """\
# A recipe for these tests.
model: {name: memnet, memory_blocks: 2, recursions: 1, channels: 4}
data: {task: photos-jpeg, patch: 31, stride: 21, batch: 16}
optimisation:
  optimiser: adam
  lr: 0.003
  schedule: cosine
  length: {steps: 600}
training: {workers: 2}
evaluation:
  benchmarks:
    - {benchmark: jpeg-q10, data: images}
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    return path


def complaint(file: Path, old: str = "", new: str = "", overrides: list[str] | None = None, *, text: str = TEXT) -> str:
    """What read_recipe says to the recipe with one piece of text replaced; one line."""
    assert text.count(old) >= 1
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        read_recipe(str(file), overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


# names


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown recipe 'memnet-jpeg-sampel'; did you mean 'memnet-jpeg-sample'\?"):
        read_recipe("memnet-jpeg-sampel")
    with pytest.raises(UserError, match=r"unknown recipe 'nowhere/mine.yaml'"):
        read_recipe("nowhere/mine.yaml")


def test_an_unknown_model_is_answered_with_the_nearest(file):
    assert "mine.yaml" in complaint(file, "name: memnet", "name: menmet")
    assert "model.name: unknown model 'menmet'; did you mean 'memnet'?" in complaint(
        file, "name: memnet", "name: menmet"
    )


@pytest.mark.parametrize("name", ["[memnet]", "{memnet: 1}", "null", "3"])
def test_a_model_name_that_is_no_name_is_refused(name, file):
    assert "model.name: " in complaint(file, "name: memnet", f"name: {name}")


def test_the_command_line_does_not_exchange_the_model(file):
    """The file's options are those of its own model."""
    assert "model.name: " in complaint(file, overrides=["model.name=other"])


# mistakes


@pytest.mark.parametrize(
    ("old", "new", "where", "nearest"),
    [
        ("  lr: 0.003", "  lr: 0.003\n  weight_decai: 0", "7: optimisation.weight_decai", "weight_decay"),
        ("schedule:", "shedule:", "7: optimisation.shedule", "schedule"),
        ("recursions:", "recursion:", "2: model.recursion", "recursions"),
        ("stride:", "strid:", "3: data.strid", "stride"),
        ("workers: 2", "worker: 2", "9: training.worker", "workers"),
        ("{steps: 600}", "{steps: 600, epoch: 2}", "8: optimisation.length.epoch", "epochs"),
        ("benchmark: ", "benchmrk: ", "12: evaluation.benchmarks.0.benchmrk", "benchmark"),
        ("training:", "trainig:", "9: trainig", "training"),
    ],
)
def test_a_misspelt_key_names_file_line_and_nearest_key(old, new, where, nearest, file):
    said = complaint(file, old, new)
    assert said.startswith(f"{file}:{where}: unknown key; did you mean {nearest!r}? known: ")


def test_a_key_that_resembles_none_lists_the_known_ones(file):
    said = complaint(file, "workers: 2", "colour: red")
    assert "9: training.colour: unknown key; known: cache_bytes, checkpoint_every, " in said


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("lr: 0.003", "lr: fast", "6: optimisation.lr: "),
        ("lr: 0.003", "lr: -1", "6: optimisation.lr: "),
        ("lr: 0.003", "lr: [1, 2]", "6: optimisation.lr: "),
        ("optimiser: adam", "optimiser: adamn", "5: optimisation.optimiser: "),
        ("batch: 16", "batch: 0", "3: data.batch: "),
        ("patch: 31", "patch: 31.5", "3: data.patch: "),
        ("recursions: 1", "recursions: many", "2: model.recursions: "),
        ("recursions: 1", "ensemble_init: sum", "2: model.ensemble_init: "),
        ("workers: 2", "gpu: perhaps", "9: training.gpu: "),
        ("    - {benchmark: jpeg-q10, data: images}", "    []", "11: evaluation.benchmarks: "),
        ("evaluation:\n  benchmarks:\n", "evaluation:\n", "10: evaluation: "),
    ],
)
def test_a_wrong_value_names_file_line_and_key(old, new, where, file):
    assert complaint(file, old, new).startswith(f"{file}:{where}")


@pytest.mark.parametrize(("workers", "wrong"), [("3", 3), ("[1, 3]", 3), ("[3, 4]", 3), ("[1, 32]", 32)])
def test_numbers_of_workers_that_do_not_divide_the_batch_are_refused(workers, wrong, file):
    said = complaint(file, "workers: 2", f"workers: {workers}")
    assert f"training.workers: {wrong} does not divide data.batch, 16; these do: 1, 2, 4, 8, 16" in said


def test_a_range_of_workers_may_have_numbers_between_that_do_not_divide_the_batch(file):
    file.write_text(file.read_text().replace("workers: 2", "workers: [1, 4]"))
    assert read_recipe(str(file)).training.workers == (1, 4)


@pytest.mark.parametrize("key", ["data", "optimisation.length", "model.name", "evaluation.benchmarks.0.data"])
def test_a_missing_key_is_named(key, file):
    lines = {
        "data": "data: {task: photos-jpeg, patch: 31, stride: 21, batch: 16}\n",
        "optimisation.length": "  length: {steps: 600}\n",
        "model.name": "name: memnet, ",
        "evaluation.benchmarks.0.data": ", data: images",
    }
    assert f": {key}: missing; add it" in complaint(file, lines[key], "")


def test_a_file_that_is_no_recipe_is_one_line(file):
    assert "not valid YAML" in complaint(file, TEXT, "model: {name")
    assert "expected `key: value` lines" in complaint(file, TEXT, "- a list")
    assert "expected `key: value` lines" in complaint(file, TEXT, "")
    file.write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(UserError, match=r"mine.yaml"):
        read_recipe(str(file))


# groups of options

GROUPED = TEXT.replace(
    TEXT.splitlines()[1],
    "model:\n  name: memorynet\n  memory:\n    parts: 4\n  contrastive: {vgg: {path: stand-in}}",
)


@pytest.fixture
def grouped(tmp_path) -> Path:
    path = tmp_path / "grouped.yaml"
    path.write_text(GROUPED)
    return path


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        (
            "    parts: 4",
            "    part: 4",
            "5: model.memory.part: unknown key; did you mean 'parts'? known: base, classes, ",
        ),
        (
            "path: stand-in",
            "pth: stand-in",
            "6: model.contrastive.vgg.pth: unknown key; did you mean 'path'? known: path, ",
        ),
        (
            "    parts: 4",
            "    parts: 0",
            "5: model.memory.parts: Input should be greater than or equal to 1 (given: 0)",
        ),
        ("    parts: 4", "    shrink: 0.01", "4: model.memory: shrink 0.01: from 0 to below 1/100, "),
        ("    parts: 4", "    levels: four", "5: model.memory.levels: Input should be 1, 2 or 3 (given: 'four')"),
        (
            "path: stand-in",
            "sha256: abc",
            "6: model.contrastive.vgg.sha256: 64 hex digits, or at least the first 8 of them",
        ),
        (
            "\n    parts: 4",
            " false",
            "4: model.memory: expected `key: value` pairs, or null for none, found False; known: base, ",
        ),
        (
            "\n    parts: 4",
            " null\n  loss: 3",
            "5: model.loss: expected `key: value` pairs, found 3; known: lambda_edge, ",
        ),
        (
            "{vgg: {path: stand-in}}",
            "{vgg: null}",
            "6: model.contrastive.vgg: expected `key: value` pairs, found None; known",
        ),
    ],
)
def test_a_mistake_in_a_group_is_told_as_one_outside(old, new, where, grouped):
    assert complaint(grouped, old, new, text=GROUPED).startswith(f"{grouped}:{where}")


def test_the_command_line_reaches_into_a_group(grouped):
    changed = read_recipe(str(grouped), ["model.memory.shrink=0.001", "model.loss.recon=null"])
    plain = read_recipe(str(grouped)).model_dump()
    plain["model"]["memory"]["shrink"] = 0.001
    plain["model"]["loss"]["recon"] = None
    assert changed.model_dump() == plain
    assert (plain["model"]["memory"]["parts"], build_model(changed.model).memory.shrink) == (4, 0.001)
    said = complaint(grouped, overrides=["model.memory.shrnk=1"], text=GROUPED)
    assert said.startswith(f"{grouped}:4: model.memory.shrnk: unknown key; did you mean 'shrink'?")


def test_a_group_that_is_null_is_a_mechanism_less(grouped):
    changed = read_recipe(str(grouped), ["model.memory=null", "model.contrastive=null"])
    model = build_model(changed.model)
    assert (model.memory, model.contrastive) == (None, None)
    assert changed.model_dump()["model"]["memory"] is None


def test_a_recipe_with_groups_is_the_same_on_the_other_side(grouped):
    recipe = read_recipe(str(grouped), ["model.contrastive=null", "model.memory.levels=2"])
    assert unpacked(json.loads(json.dumps(packed(recipe)))).model_dump() == recipe.model_dump()


# rules between values


@pytest.mark.parametrize("span", ["{}", "{steps: 5, epochs: 2}"])
def test_a_length_is_steps_or_epochs_one_of_the_two(span, file):
    said = complaint(file, "{steps: 600}", span)
    assert f"{file}:8: optimisation.length: give steps or epochs, one of the two" in said


@given(st.integers(1, 10**6), st.integers(1, 10**5))
def test_a_span_counts_optimiser_steps(n, steps_per_epoch):
    assert Span(steps=n).in_steps(steps_per_epoch) == n
    assert Span(epochs=n).in_steps(steps_per_epoch) == n * steps_per_epoch


@pytest.mark.parametrize(
    ("old", "new"),
    [("schedule: cosine", "schedule: step"), ("schedule: cosine", "schedule: cosine\n  lr_step: {epochs: 2}")],
)
def test_the_step_schedule_and_no_other_has_a_step(old, new, file):
    said = complaint(file, old, new)
    assert "optimisation: schedule step needs lr_step, and no other has one" in said


def test_clip_over_lr_needs_a_limit(file):
    assert "clip_over_lr" in complaint(file, "lr: 0.003", "lr: 0.003\n  clip_over_lr: true")


def test_arguments_that_the_model_refuses_are_a_users_mistake(file):
    file.write_text(TEXT.replace("recursions: 1", "recursions: 0"))
    with pytest.raises(UserError, match=r"model memnet: memory_blocks 2, recursions 0.* at least 1"):
        build_model(read_recipe(str(file)).model)


# what is read


def test_a_recipe_builds_the_model_that_it_describes(file):
    recipe = read_recipe(str(file))
    model = build_model(recipe.model)
    assert isinstance(model, MemNet)
    assert (len(model.blocks), model.blocks[0].recursions, model.recon.in_channels) == (2, 1, 4)
    assert (recipe.optimisation.precision, recipe.training.seed, recipe.data.dihedral) == ("fp32", 0, True)
    options = recipe.model_dump()["model"]  # resolved: with what the file leaves to the class
    assert options["multi_supervision"] is True
    assert options["predict_at"] is None


def test_every_switch_of_the_model_is_a_key_of_the_recipe(file):
    switches = {
        "long_term": False,
        "short_term": False,
        "multi_supervision": False,
        "fe_preact": False,
        "share_bn": True,
        "ensemble_init": "unit",
        "bn_momentum": 0.5,
        "in_channels": 3,
        "predict_at": 1,
    }
    recipe = read_recipe(str(file), [f"model.{key}={value}" for key, value in switches.items()])
    assert recipe.model.model_dump() | switches == recipe.model.model_dump()


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("optimisation.lr=0.5", "optimisation", "lr", 0.5),
        ("optimisation.clip=null", "optimisation", "clip", None),
        ("optimisation.length={epochs: 3}", "optimisation", "length", Span(epochs=3)),
        ("optimisation.length.steps=3", "optimisation", "length", Span(steps=3)),
        ("training.seed=7", "training", "seed", 7),
        ("model.long_term=false", "model", "long_term", False),
        ("data.task=photos-sr", "data", "task", "photos-sr"),
    ],
)
def test_the_command_line_replaces_what_the_file_says(override, section, key, value, file):
    changed = read_recipe(str(file), [override])
    assert getattr(getattr(changed, section), key) == value
    before, after = read_recipe(str(file)).model_dump(), changed.model_dump()
    before[section].pop(key)
    after[section].pop(key)
    assert before == after


def test_the_last_of_two_overrides_wins(file):
    assert read_recipe(str(file), ["training.seed=1", "training.seed=2"]).training.seed == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimisation.lrr=1", "optimisation.lrr: unknown key; did you mean 'lr'?"),
        ("optimizer.lr=1", "optimizer: unknown key; did you mean 'optimisation'?"),
        ("model.recursion=2", "model.recursion: unknown key; did you mean 'recursions'?"),
        ("optimisation.lr=fast", "optimisation.lr: "),
        ("optimisation.length.epochs=2", "give steps or epochs, one of the two"),
        ("optimisation.lr.x=1", "--set optimisation.lr.x=1: lr has no keys of its own"),
        ("optimisation.lr", "--set optimisation.lr: expected section.key=value"),
        ("optimisation.lr=[", "--set optimisation.lr=[: "),
    ],
)
def test_a_wrong_override_is_one_line(override, said, file):
    assert said in complaint(file, overrides=[override])


# what is shipped


SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_valid(name):
    recipe = read_recipe(name)
    task = read_task(recipe.data.task)
    with torch.device("meta"):
        model: Any = build_model(recipe.model)
    assert model.in_channels == (3 if task.colour == "rgb" else 1)
    assert recipe.data.batch % recipe.training.workers == 0
    assert (RECIPES / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize(
    ("name", "task", "levels"),
    [
        ("memnet-jpeg", "bsd-jpeg", (10, 20)),
        ("memnet-denoise", "bsd-denoise", (30, 50, 70)),
        ("memnet-sr", "sr-291", (2, 3, 4)),
    ],
)
def test_the_papers_recipes_have_the_papers_numbers(name, task, levels):
    """MemNet, section 5.1; clipping and bias learning rate as released."""
    recipe = read_recipe(name)
    with torch.device("meta"):
        model: Any = build_model(recipe.model)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d))
    assert (weights, model.depth, model.multi_supervision) == (676_992, 80, True)
    d = recipe.data
    assert (d.task, d.patch, d.stride, d.dihedral, d.batch) == (task, 31, 21, True, 64)
    assert read_task(task).degradation.levels == levels
    o = recipe.optimisation
    assert (o.optimiser, o.lr, o.momentum, o.weight_decay) == ("sgd", 0.1, 0.9, 1e-4)
    assert (o.clip, o.clip_over_lr, o.bias_lr) == (0.01, True, 0.1)
    assert (o.schedule, o.lr_step, o.gamma) == ("step", Span(epochs=20), 0.1)
    total = o.length.in_steps(1000)
    rates = {round(learning_rate(o, step, total, 1000), 9) for step in range(total)}
    assert rates == {0.1, 0.01, 0.001, 0.0001}  # 80 epochs


def test_released_iterations_are_a_schedule_too():
    recipe = read_recipe("memnet-sr", ["optimisation.lr_step={steps: 200000}"])
    assert learning_rate(recipe.optimisation, 199_999, 10**6, 25_000) == 0.1
    assert learning_rate(recipe.optimisation, 200_000, 10**6, 25_000) == pytest.approx(0.01)


def test_a_recipe_is_closed_and_frozen(file):
    recipe = read_recipe(str(file))
    with pytest.raises(ValueError, match="frozen"):
        recipe.optimisation.lr = 1.0
    with pytest.raises(ValueError, match="Extra inputs"):
        Optimisation(optimiser="sgd", lr=1, schedule="cosine", length=Span(steps=1), nesterov=True)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_scored_on_what_there_is(name, tmp_path):
    for run in read_recipe(name).evaluation.benchmarks:
        assert (benchmark(run.benchmark).kind == "pairs") == (run.layout is not None)
        if run.layout is not None:
            layout_name, _, variant = run.layout.partition(":")
            known = layout(layout_name, "pairs", tmp_path, variant or None)
            assert run.subset in {None, *(count.subset for count in known.published())}


@pytest.mark.parametrize(
    ("name", "parameters", "batch", "lr", "lr_end", "clip", "decay", "steps"),
    [
        *((f"drcnet-{t}", 18_972_598, 32, 2e-4, 1e-7, 0.01, 0, 400_000) for t in ("derain", "denoise", "deblur")),
        *(
            (f"memorynet-{t}", 3_637_585, 16, 2e-4, 1e-6, None, 5e-4, 250 * 100)
            for t in ("deshadow", "raindrop", "deblur")
        ),
        ("memorynet-deshadow-released", 3_637_585, 16, 2e-4, 1e-6, None, 0, 250 * 100),
        ("timelapse-derain", 817_987, 16, 2e-4, 0, None, 0, 250_000),
    ],
)
def test_the_other_papers_recipes_have_their_numbers(name, parameters, batch, lr, lr_end, clip, decay, steps):
    """DRCNet, section 4.1; MemoryNet, section IV and its release; Cho et al. 2022, section IV."""
    recipe = read_recipe(name)
    with torch.device("meta"):
        model = build_model(recipe.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert (recipe.data.patch, recipe.data.batch) == (256, batch)
    o = recipe.optimisation
    assert (o.optimiser, o.lr, o.lr_end, o.clip, o.weight_decay) == ("adam", lr, lr_end, clip, decay)
    assert o.length.in_steps(100) == steps
    warm = 300 if name.startswith("memorynet") else 0
    assert learning_rate(o, steps // 2 + warm // 2, steps, 100) == pytest.approx((lr + lr_end) / 2, rel=0.01)
    assert learning_rate(o, steps, steps, 100) == pytest.approx(lr_end)


def test_a_warm_up_rises_to_the_learning_rate_and_the_schedule_begins_after_it():
    o = read_recipe("memorynet-deshadow").optimisation
    rates = [learning_rate(o, step, 21_000, 83) for step in (0, 124, 248, 249, 250)]
    assert rates[0] == pytest.approx(2e-4 / 250)
    assert rates[1] == pytest.approx(1e-4)
    assert rates[2] < rates[3] == 2e-4
    assert rates[4] <= rates[3]


def test_a_recipe_says_either_stride_or_crops(file):
    both = complaint(file, overrides=["data.crops=2", "data.stride=3"])
    assert both.endswith("data: give stride (a grid of patches) or crops (random places), one of the two")
    assert read_recipe(str(file), ["data.crops=2", "data.stride=null"]).data.sampling == RandomCrops(31, 2)


def test_what_only_reads_recipes_does_without_torch():
    """The driver, Ray's helpers and the command line: an import of torch takes each of them seconds."""
    check = "import sys, jobs.training.train, jobs.recipe; print([m for m in ('torch', 'ray', 'tensorboardX') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "name"),
    [("jpeg-v1.5", "jpeg-v1.5"), ("jpeg-lr0.003.yaml", "jpeg-lr0.003"), ("a.b/c.d.yaml", "c.d"), ("x", "x")],
)
def test_only_the_suffix_of_a_yaml_file_is_no_part_of_a_name(given, name):
    assert bare_name(given) == name


def test_a_run_is_named_after_all_code_that_draws_its_inputs():
    root = RECIPES.parents[1]

    def imported(path: Path) -> set[Path]:
        names = re.findall(r"^ *from (pipeline\.(?:degradations[\w.]*|normal)) ", path.read_text(), re.M)
        stems = [root / name.replace(".", "/") for name in names]
        return {stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py") for stem in stems}

    drawing = {path for path in (root / "pipeline/degradations").rglob("*.py") if "def drawn_by" in path.read_text()}
    names = {str(path.relative_to(root / "pipeline/degradations")) for path in drawing}
    assert names >= {"base.py", "noise.py", "chain/__init__.py"}
    needed: set[Path] = set()
    while drawing - needed:
        needed |= drawing
        drawing = {other for path in drawing for other in imported(path)}
    assert {str(path.relative_to(root)) for path in needed} <= set(CODE)


def test_a_run_is_named_after_all_code_that_the_models_share():
    files = {path.stem for path in (RECIPES.parent / "models").glob("*.py")} - {"__init__"}
    shared = files - set(MODELS)  # of these a run has the recipe's own
    assert len(shared) < len(files)
    assert {f"jobs/models/{name}.py" for name in shared} <= {*CODE, *OWN}


def test_a_run_is_named_after_all_code_that_moves_its_weights():
    root = RECIPES.parents[1]
    imported = re.findall(
        r"^from (jobs\.training\.\w+|jobs\.arithmetic) import", (root / "jobs/training/loop.py").read_text(), re.M
    )
    needed = {f"{name.replace('.', '/')}.py" for name in imported} - {"jobs/training/meter.py"}  # which only measures
    assert needed >= {"jobs/arithmetic.py", "jobs/training/optimiser.py"}
    assert needed | {"jobs/training/loop.py"} <= set(CODE)
    stage = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]["train"]["do"]
    assert {"jobs/training/loop.py", "jobs/training/optimiser.py"} <= set(stage["deps"])
