"""Each model on two gloo ranks with half of every batch, beside one process: 20 steps over padded batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import photograph
from torch import Tensor

from jobs.recipe import read_recipe
from jobs.training.loop import Run
from pipeline.errors import UserError

MODELS = {
    "memorynet": "{name: memorynet, n: 8, u: 4, o: 4, cabs: 1, memory: {classes: 2}, contrastive: {vgg: {path: stand-in}}}",
    "timelapse": "{name: timelapse, channels: 8, memory: {items: 4}}",
    "drcnet": "{name: drcnet, width: 4, levels: 3, contrastive: {layers: [1, 6], weights: [0.06, 0.12], vgg: {path: stand-in}}}",
}
RECIPE = """
model: {model}
data: {{task: tiny, patch: 16, crops: 3, batch: 4}}
optimisation: {{optimiser: sgd, lr: {lr}, clip: 1, schedule: cosine, length: {{steps: 20}}}}
training: {{seed: 3, validate_every: 20, log_every: 5}}
evaluation: {{benchmarks: [{{benchmark: pairs-y, data: images, layout: pairs}}]}}
"""


def trained(name: str, folder: Path, data: dict[str, Path], *overrides: str) -> dict[str, Tensor]:
    """Weights and buffers after all steps."""
    run = Run(read_recipe(str(folder / f"{name}.yaml"), list(overrides)), data[name], torch.device("cpu"))
    assert run.loader.samples % 4  # the last batch has padding
    run.train(lambda run: None, lambda record: None)
    assert run.state.step == 20
    return dict(run.model.state_dict())


def rank(index: int, folder: Path, data: dict[str, Path]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    found = {name: trained(name, folder, data) for name in MODELS}
    found["of_rank"] = trained("timelapse", folder, data, "optimisation.batchnorm=rank", "model.memory.update=none")
    found["bf16"] = trained("drcnet", folder, data, "optimisation.gradients=bf16", "optimisation.accumulate=2")
    torch.save(found, folder / f"{index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(builder, tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """What the two ranks left, and the data."""
    names = [f"train/{i}.png" for i in range(3)] + ["val/0.png"]
    pairs = {}
    for seed, name in enumerate(names):
        split, file = name.split("/")
        pairs[f"{split}/gt/{file}"] = photograph(seed, 24, 24)
        pairs[f"{split}/lq/{file}"] = photograph(seed, 24, 24) // 2 + 30
    frames = {
        f"{split}/s/{i}.png": photograph(10 * n + i, 24, 24)
        for n, split in enumerate(("train", "val"))
        for i in range(3)
    }
    of_pairs: dict[str, Any] = {"layout": "pairs", "degradation": {"kind": "paired"}, "colour": "rgb"}
    paired = builder("ddp-pairs", pairs, **of_pairs)
    mixed = builder("ddp-mixed", pairs, negatives={}, **of_pairs)
    scenes = builder("ddp-scenes", frames, layout="scenes", degradation={"kind": "timelapse"}, colour="rgb")
    data = {"memorynet": paired, "timelapse": scenes, "drcnet": mixed}
    folder = tmp_path_factory.mktemp("ddp")
    for name, model in MODELS.items():
        # Signs of L1 and nearest items turn rounding into decisions, which a larger rate takes apart within 20 steps.
        lr = 0.0002 if name == "timelapse" else 0.01
        (folder / f"{name}.yaml").write_text(RECIPE.format(model=model, lr=lr))
    torch.multiprocessing.spawn(rank, (folder, data), nprocs=2)
    return folder, data


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_train_what_one_process_trains(name, runs):
    folder, data = runs
    both = torch.load(folder / "0.pt")[name]
    alone = trained(name, folder, data)
    assert both.keys() == alone.keys()
    for key, value in alone.items():
        torch.testing.assert_close(both[key], value, rtol=2e-4, atol=4e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", MODELS)
def test_both_ranks_hold_the_same_weights_and_memory_bit_for_bit(name, runs):
    first, second = (torch.load(runs[0] / f"{index}.pt")[name] for index in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    if name == "timelapse":
        assert "memory.items" in first


def test_with_statistics_of_each_rank_they_hold_the_same_weights(runs):
    folder, data = runs
    first, second = (torch.load(folder / f"{index}.pt")["of_rank"] for index in range(2))
    averages = {key for key in first if "running" in key}
    assert all(torch.equal(first[key], second[key]) for key in first.keys() - averages)
    assert not any(torch.equal(first[key], second[key]) for key in averages)  # of other samples
    alone = trained("timelapse", folder, data, "model.memory.update=none")
    weights = [key for key in alone if key.endswith("conv_a.weight")]
    assert not any(torch.allclose(first[key], alone[key], rtol=1e-6) for key in weights)


def test_with_gradients_in_bf16_they_hold_the_same_weights_which_are_near_those_of_fp32(runs):
    first, second = (torch.load(runs[0] / f"{index}.pt") for index in range(2))
    assert all(torch.equal(value, second["bf16"][key]) for key, value in first["bf16"].items())
    weights = [key for key in first["bf16"] if key.endswith("weight")]
    assert all(torch.allclose(first["bf16"][key], first["drcnet"][key], rtol=0.01, atol=1e-3) for key in weights)
    assert not all(torch.allclose(first["bf16"][key], first["drcnet"][key], rtol=0, atol=1e-6) for key in weights)


@pytest.mark.parametrize(("negatives", "starts"), [({}, True), ({"kind": "extra", "number": 1}, False), (None, False)])
def test_mixtures_are_trained_with_on_a_task_of_mixtures_alone(negatives, starts, builder, tmp_path):
    names = [f"{split}/{{}}/{i}.png" for split in ("train", "val") for i in range(2)]
    images = {name.format("gt"): photograph(seed, 24, 24) for seed, name in enumerate(names)}
    images |= {name.format("lq"): photograph(seed, 24, 24) // 2 + 30 for seed, name in enumerate(names)}
    kind = "none" if negatives is None else negatives.get("kind", "intra")
    of_pairs: dict[str, Any] = {"layout": "pairs", "degradation": {"kind": "paired"}, "colour": "rgb"}
    data = builder(f"negatives-{kind}", images, negatives=negatives, **of_pairs)
    (tmp_path / "drcnet.yaml").write_text(RECIPE.format(model=MODELS["drcnet"], lr=0.01))
    if starts:
        Run(read_recipe(str(tmp_path / "drcnet.yaml")), data, torch.device("cpu"))
        return
    with pytest.raises(UserError, match=r"^model drcnet needs intra negatives, which task tiny has not$"):
        Run(read_recipe(str(tmp_path / "drcnet.yaml")), data, torch.device("cpu"))
