"""What weights are chosen by: a benchmark of its own, when training ends early, and which weights are the run's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photograph

from jobs.evaluation.benchmark import benchmark
from jobs.evaluation.evaluate import score_folder
from jobs.evaluation.protocols import mean
from jobs.evaluation.scoring import restorer
from jobs.evaluation.validating import Validator, means
from jobs.origin import origin
from jobs.recipe import Recipe, read_recipe
from jobs.training.loop import Run
from jobs.training.resume import Checkpoints
from jobs.training.run import plan_run
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.images import write_image
from pipeline.storage import storage

RECIPE = """
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 2, bn_momentum: 0.1}
data: {task: tiny, patch: 8, crops: 4, batch: 8}
optimisation: {optimiser: adam, lr: 0.002, schedule: constant, length: {steps: 8}}
training: {workers: 1, seed: 3, log_every: 1, validate_every: 1, checkpoint_every: 1}
validation: {benchmark: jpeg-q10, data: chosen, metric: ssim}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
"""
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(builder: Callable[..., Path], tmp_path, monkeypatch) -> Path:
    built = builder("validation", {f"train/{i}.png": photograph(i, 20, 20, 1) for i in range(3)})
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        write_image(Path(f"chosen/{i}.png"), photograph(10 + i, 24, 20 + i, 1))
    write_image(Path("images/one.png"), photograph(20, 24, 20, 1))
    return built


def recipe(*overrides: str, text: str = RECIPE) -> Recipe:
    Path("tiny.yaml").write_text(text)
    return read_recipe("tiny.yaml", list(overrides))


def trained(asked: Recipe, data: Path, folder: str = "run") -> tuple[Run, Checkpoints, list[str]]:
    """A run to its end, with its checkpoints in a folder and what it told."""
    run, told = Run(asked, data, CPU), []
    run.tell = told.append
    checkpoints = Checkpoints(storage(folder), keep_last=asked.training.keep_last, keep_best=asked.training.keep_best)
    run.train(lambda run: checkpoints.save(run.state.step, run.save(), run.scores, {}), lambda record: None)
    checkpoints.finish(run.state.step, run.scores, {})
    return run, checkpoints, told


def scripted(monkeypatch, values: list[float]) -> None:
    """Have the validations give these values."""
    monkeypatch.setattr(Run, "validate", lambda run, beat: {"psnr": 30.0, "ssim": values[run.state.step - 1]})


def test_a_run_validates_as_evaluation_scores(data):
    asked = recipe()
    run, _, _ = trained(asked, data)
    assert len(run.scores) == 8
    which = benchmark("jpeg-q10")
    scored = score_folder(restorer(run.model.eval()), which, asked.validation.run)
    expected = mean([each.output for each in scored]).values
    record = run.records[-1]
    assert {"psnr": record["val_psnr"], "ssim": record["val_ssim"]} == pytest.approx(
        {name: expected[name] for name in ("psnr", "ssim")}, rel=1e-12
    )
    assert run.scores[8] == record["val_ssim"]


def test_the_mean_is_the_same_for_any_number_of_ranks(data):
    asked = recipe()
    run, validator = Run(asked, data, CPU), Validator(asked.validation)
    run.model.eval()
    found = []
    for ranks in (1, 2, 3, 4):
        parts = [validator.scores(run.model, 8, rank, ranks, lambda: None)[0] for rank in range(ranks)]
        found.append(means([score for part in reversed(parts) for score in part]))
    assert found[0] == found[1] == found[2] == found[3]


def test_training_ends_after_so_many_validations_without_a_better_one(data, monkeypatch):
    values = [0.1, 0.5, 0.3, 0.5, 0.2, 0.4, 0.6, 0.7]
    scripted(monkeypatch, values)
    run, checkpoints, told = trained(recipe("validation.stop_after=2", "training.keep_last=9"), data)
    assert run.state.step == run.final == 6  # the fourth is as good as the second
    assert told == ["step 6: 2 validations without a better ssim than 0.5 at step 4; training ends"]
    assert checkpoints.newest(Path("copy"), print) == "step-00000006"
    whole, _, told = trained(recipe("training.keep_last=9"), data, "whole")
    assert (whole.state.step, told) == (8, [])


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_that_ended_early_is_at_its_end_when_it_resumes(data, monkeypatch, every):
    """Also where the validation at which it ended is no step of a checkpoint, and where it was killed before that one."""
    scripted(monkeypatch, [0.5, 0.4, 0.3, 0.2, 0.9, 0.9, 0.9, 0.9])
    asked = recipe("validation.stop_after=3", f"training.checkpoint_every={every}", "training.keep_last=9")
    run, checkpoints, _ = trained(asked, data)
    assert run.state.step == 4
    for step in (3, 4):
        again = Run(asked, data, CPU)
        checkpoints.fetch(f"step-{step:08d}", Path(f"copy-{step}"))
        again.load(Path(f"copy-{step}"))
        again.train(lambda run: None, lambda record: None)
        assert again.state.step == 4
        assert all(
            torch.equal(a, b)
            for a, b in zip(run.model.state_dict().values(), again.model.state_dict().values(), strict=True)
        )


def test_the_best_weights_are_the_runs_where_the_recipe_says_so_and_are_kept(data, monkeypatch):
    scripted(monkeypatch, [0.1, 0.6, 0.3, 0.2, 0.1, 0.5, 0.4, 0.3])
    run, checkpoints, _ = trained(recipe("validation.final=best"), data)
    assert (run.state.step, run.final) == (8, 2)
    checkpoints.fetch(Checkpoints.name(run.final), Path("copy"))
    last, _, _ = trained(recipe(), data, "last")
    assert last.final == 8


def test_what_is_better_when_lower_is_chosen_so(data, monkeypatch):
    monkeypatch.setattr(Run, "_chosen_by", "val_lab_rmse_pi_480")
    monkeypatch.setattr(
        Run, "validate", lambda run, beat: {"lab_rmse_pi_480": [5.0, 3.0, 4.0, 3.5][run.state.step % 4]}
    )
    run, _, _ = trained(recipe("validation.final=best"), data)
    assert run.final == 5


def test_without_images_of_its_own_the_val_split_chooses(builder, data, monkeypatch):
    files = {f"{split}/{i}.png": photograph(i, 20, 20, 1) for i, split in enumerate(["train", "train", "val"])}
    built = builder("validation-split", files)
    text = RECIPE.replace("{benchmark: jpeg-q10, data: chosen, metric: ssim}", "{stop_after: 1}")
    run, _, told = trained(recipe("optimisation.lr=0.5", text=text), built)
    assert run.state.step < 8
    assert "without a better psnr than" in told[0]


def test_what_chooses_the_weights_is_in_the_runs_name(data):
    asked = [recipe(), recipe("validation.stop_after=2"), recipe(text=RECIPE.replace("validation: ", "# "))]
    assert len({str(origin(each, "shards")) for each in asked}) == 3
    assert "validation" not in origin(asked[2], "shards")  # and the names of runs without are what they were
    assert "validation" not in asked[2].model_dump()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("data: chosen, ", "", r"validation: benchmark and data go together"),
        ("metric: ssim", "metric: ssin", r"^validation\.metric: jpeg-q10 has no ssin; did you mean 'ssim'\?"),
        ("benchmark: jpeg-q10, data: chosen", "benchmark: jpeg-11, data: chosen", r"jpeg-11"),
        ("benchmark: jpeg-q10, data: chosen, ", "", r"metric ssim: of a benchmark; the val split has psnr"),
        ("metric: ssim", "final: best", r"validation\.final best: needs training\.keep_best of at least 1, and a"),
    ],
)
def test_a_validation_that_cannot_be_is_one_line_before_anything_starts(data, old, new, says):
    assert old in RECIPE
    text = RECIPE.replace(old, new, 1).replace("checkpoint_every: 1", "checkpoint_every: 2")
    Path("tiny.yaml").write_text(text)
    with pytest.raises(UserError, match=says) as error:
        plan_run("tiny.yaml", data=str(data.parent), store="store")
    assert "\n" not in str(error.value)


def test_images_that_are_scored_later_do_not_choose_the_weights(data):
    recipe()
    plan_run("tiny.yaml", data=str(data.parent), store="store")
    write_bytes(Path("chosen/again.png"), Path("images/one.png").read_bytes())
    with pytest.raises(UserError, match=r"^validation: 1 of its 4 images are test images .*again.png is images/one"):
        plan_run("tiny.yaml", data=str(data.parent), store="store")


def test_a_benchmark_of_other_channels_than_the_model_is_one_line(data):
    with pytest.raises(
        UserError, match=r"^validation\.benchmark: pairs-y is on images of 3 channels, and model\.in_chan"
    ):
        Run(recipe("validation.benchmark=pairs-y", "validation.layout=pairs"), _with_pairs(data), CPU)


def _with_pairs(data: Path) -> Path:
    for role in ("lq", "gt"):
        write_image(Path(f"chosen/val/{role}/0.png"), np.repeat(photograph(1, 24, 24, 1), 3, 2))
    return data


def test_pictures_of_a_validation_show_input_output_and_target(data):
    run, _, _ = trained(recipe(), data)
    assert sorted(run.pictures) == ["0", "1", "2"]
    with torch.no_grad():
        run.model.eval()
        which = benchmark("jpeg-q10")
        scored = score_folder(restorer(run.model), which, read_recipe("tiny.yaml").validation.run)
    for image in scored:
        expected = np.concatenate([image.pair.lq, image.restored, image.pair.gt], 1)
        assert np.abs(run.pictures[image.key] / 255 - expected.clip(0, 1)).max() <= 0.5 / 255 + 1e-6
