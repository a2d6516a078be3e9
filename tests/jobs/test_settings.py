import numpy as np
import pytest
import torch

from jobs.evaluation.evaluate import evaluate
from jobs.evaluation.settings import with_settings
from jobs.recipe import BenchmarkRun, resolved_model
from jobs.restoring.checkpoint import Trained
from pipeline.errors import UserError
from pipeline.images import write_image

MEMNET = {"name": "memnet", "memory_blocks": 3, "recursions": 1, "channels": 4}


def trained(options: dict, seed: int = 0) -> Trained:
    torch.manual_seed(seed)
    recipe = {"model": options}
    task = {"colour": "gray", "degradation": {"kind": "jpeg", "quality": [10]}}
    return Trained(resolved_model(recipe).eval(), recipe, "tiny", "store/tiny", "0" * 64, task)


def test_an_option_of_evaluation_changes_what_is_predicted_and_no_weight():
    whole = trained(MEMNET)
    x = torch.rand(1, 1, 20, 24)
    with torch.inference_mode():
        y = whole.model.predictions(x)
        before = whole.model.restore(x)
        for m in (1, 2, 3):
            one = with_settings(whole, [f"model.predict_at={m}"])
            assert torch.equal(one.model.restore(x), y[m - 1])
            assert one.model.state_dict().keys() == whole.model.state_dict().keys()
        assert torch.equal(whole.model.restore(x), before)
        assert torch.equal(with_settings(one, ["model.predict_at=null"]).model.restore(x), before)
    assert with_settings(whole, ["model.predict_at=1"]).model.receptive_field < whole.model.receptive_field
    assert with_settings(whole, []) is whole


@pytest.mark.parametrize(
    ("options", "given", "says"),
    [
        (MEMNET, "model.channels=8", r"--set model\.channels=8: is no option of evaluation; of memnet it takes model\.predict_at"),
        (MEMNET, "optimisation.lr=1", "others belong to `memoir train --set`"),
        (MEMNET, "model.predict_at", "is no option of evaluation"),
        (MEMNET, "model.predict_at=4", "predict_at 4: needs multi_supervision and a block from 1 to 3"),
        (MEMNET, "model.predict_at=two", r"model memnet: predict_at: Input should be a valid integer"),
        ({"name": "drcnet", "width": 4}, "model.predict_at=1", "drcnet has none"),
    ],
)  # fmt: skip
def test_another_option_or_value_is_one_line(options, given, says):
    with pytest.raises(UserError, match=says) as error:
        with_settings(trained(options), [given])
    assert "\n" not in str(error.value)


def test_a_benchmark_is_run_with_the_option(tmp_path, monkeypatch):
    write_image(tmp_path / "photos/1.png", np.random.default_rng(0).integers(0, 256, (40, 48, 1), np.uint8))
    monkeypatch.setattr("jobs.evaluation.evaluate.load_model", lambda *_: trained(MEMNET))
    run = BenchmarkRun(benchmark="jpeg-q10", data=str(tmp_path / "photos"))
    whole = evaluate("tiny", run, tmp_path)
    first = evaluate("tiny", run, tmp_path, settings=["model.predict_at=1"])
    assert first["psnr"] != whole["psnr"]
    assert (whole["model"], first["model"]) == ("tiny", "tiny+model.predict_at=1")


def test_the_command_takes_an_option_with_a_benchmark_only(cli):
    code, _, err = cli("evaluate", "--model", "identity", "--set", "model.predict_at=1")
    assert code != 0
    assert err.strip() == "memoir: --set goes with --benchmark and --data, and with a model"
