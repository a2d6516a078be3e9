"""The papers' ablation tables at the size of the samples, each row beside the paper's figures.

    python benchmarks/ablate.py {memnet,memorynet,timelapse,drcnet} [--steps 100] [--seeds 0 1 2] [--data data]

Each row is the paper's sample recipe with the row's overrides, trained on the CPU in this process (no Ray, no checkpoint)
and scored by the recipe's own benchmarks, below the score of the degraded input itself. It needs the samples
(`memoir sample`, `memoir ingest`) and the rows' tasks (`memoir build TASK`) in the working directory.

Such a run shows that every variant trains and what it costs. It does not rank the variants: the networks are small, the
images few, the steps too, and the data are not the paper's. For the paper's size, give a row's overrides
to the paper's own recipe: `memoir train memnet-sr --set model.long_term=false`.
"""

import argparse
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch

from jobs.evaluation.benchmark import benchmark
from jobs.evaluation.evaluate import Restorer, dataset_name, identity, restorer, score_folder
from jobs.evaluation.protocols import Score, mean
from jobs.recipe import Recipe, read_recipe
from jobs.training.loop import Run
from pipeline.errors import UserError
from pipeline.shards.format import read_shards_json


class Row(NamedTuple):
    """A variant. overrides: changes of the recipe, as `memoir train --set` takes them.

    paper: PSNR/SSIM as printed, for each benchmark of the recipe; "-" where the paper has none.
    """

    name: str
    overrides: tuple[str, ...]
    paper: tuple[str, ...]


class Table(NamedTuple):
    """published: the tables, and the data they were scored on. input: the paper's figures of the degraded input."""

    published: str
    recipe: str
    input: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str


def losses(*terms: str) -> tuple[str, ...]:
    """Overrides that leave L only these of its terms b, s, c, w."""
    return tuple(f"model.loss.{term}=0" for term in "bscw" if term not in terms)


SUPERVISED = ("model.siamese=false", "data.task=timelapse-mean")
NO_CR = "model.contrastive=null"

TABLES = {
    # Tai et al., MemNet, ICCV 2017
    "memnet": Table(
        "MemNet: long- and short-term connections (Set5), multi-supervision (Table 2, Set5)",
        "memnet-sr-sample",
        ("33.66/.9299", "30.39/.8682", "28.42/.8104"),
        (
            Row("MemNet_NL", ("model.long_term=false",), ("37.68/.9591", "33.96/.9235", "31.60/.8878")),
            Row("MemNet_NS", ("model.short_term=false",), ("37.71/.9592", "34.00/.9239", "31.65/.8880")),
            Row("basic", ("model.multi_supervision=false",), ("-", "33.92", "-")),
            Row("MemNet", (), ("37.78/.9597", "34.09/.9248", "31.74/.8893")),
        ),
        "The paper's basic network was trained on 91 images; MemNet on these has 33.98, on 291 the 34.09 shown.",
    ),
    # Zhang et al., MemoryNet
    "memorynet": Table(
        "MemoryNet: memory and contrastive loss (Table IV, ISTD)",
        "memorynet-deshadow-sample",
        ("-",),
        (
            Row("baseline", ("model.memory=null", "model.contrastive=null"), ("26.79/.921",)),
            Row("+ memory", ("model.contrastive=null",), ("27.801/.952",)),
            Row("+ contrastive", ("model.memory=null",), ("27.68/.951",)),
            Row("+ both", (), ("28.023/.952",)),
        ),
        "L_recon is on in the rows with a memory. The features of the contrastive loss are a stand-in, not VGG19's. The\n"
        "paper's SSIM is MATLAB's of three dimensions; its RMSE, of another protocol, is left out.",
    ),
    # Cho et al., TIP 2022
    "timelapse": Table(
        "Time-lapse: network (Table IV, RealDataset) and terms of the loss (Table V, RealDataset)",
        "timelapse-derain-sample",
        ("-",),
        (
            Row("B_a", (*SUPERVISED, "model.memory=null"), ("36.62/.965",)),
            Row("B_b", SUPERVISED, ("38.03/.972",)),
            Row("B_c", ("model.memory=null", *losses("s", "b", "c")), ("39.82/.982",)),
            Row("{s, b}", losses("s", "b"), ("39.92/.981",)),
            Row("{s, b, w}", losses("s", "b", "w"), ("40.35/.982",)),
            Row("{b, c}", losses("b", "c"), ("40.01/.982",)),
            Row("{b, c, w}", losses("b", "c", "w"), ("40.57/.984",)),
            Row("B_d = {s, b, c}", losses("s", "b", "c"), ("41.08/.985",)),
            Row("{s, b, c, w}", (), ("41.56/.988",)),
        ),
        "B_a and B_b learn from single frames and the mean of their scene's frames. L_s is the release's, across the\n"
        "frames: the printed one is identically zero.",
    ),
    # Li et al., DRCNet, ECCV 2022
    "drcnet": Table(
        "DRCNet: branches of the filter and negatives of the contrastive term (Table 4, SIDD)",
        "drcnet-derain-sample",
        ("-",),
        (
            Row("base", ("model.dfr.branches=base", NO_CR), ("33.25/.812",)),
            Row("SF", ("model.dfr.branches=sf", NO_CR), ("37.76/.933",)),
            Row("EA", ("model.dfr.branches=ea", NO_CR), ("37.12/.945",)),
            Row("SF + identity", ("model.dfr.branches=sf_id", NO_CR), ("38.79/.925",)),
            Row("SF + EA", ("model.dfr.branches=sf_ea", NO_CR), ("38.89/.965",)),
            Row("DFR", (NO_CR,), ("40.01/.971",)),
            Row("DFR + Extra-CR", ("model.contrastive.negatives=extra",), ("39.95/.956",)),
            Row("DFR + Intra-CR", (), ("40.08/.972",)),
        ),
        "The paper's rows are of denoising, these of rain. The features of the contrastive term are a stand-in, not VGG19's.",
    ),
}


def scores(restore: Restorer, recipe: Recipe) -> list[Score]:
    """The mean of each benchmark of the recipe."""
    with redirect_stdout(sys.stderr):  # its progress bar
        folders = [score_folder(restore, benchmark(run.benchmark), run) for run in recipe.evaluation.benchmarks]
    return [mean([image.output for image in scored]) for scored in folders]


def train(recipe: Recipe, data: Path) -> Restorer:
    """The recipe's model at the end of its training, as a function on arrays."""
    run = Run(recipe, data / recipe.data.task, torch.device("cpu"))
    run.train(save=lambda _: None, log=lambda _: None)
    return restorer(run.model.eval())


def show(name: str, seeds: list[list[Score]], paper: tuple[str, ...], seconds: float | None) -> None:
    """One line: for each benchmark the mean over the seeds, the range of PSNR if there are several, the paper's figures."""
    cells = []
    for i, printed in enumerate(paper):
        each = [of_seed[i] for of_seed in seeds]
        own = "{psnr:.2f}/{ssim:.4f}".format_map(mean(each).values)
        if len(each) > 1:
            own += f" ({max(s.values['psnr'] for s in each) - min(s.values['psnr'] for s in each):.2f})"
        cells.append(f"{own:>22}{printed:>14}")
    print(f"{name:<16}{''.join(cells)}" + (f"{seconds:>8.1f}" if seconds is not None else ""), flush=True)


def ablate(table: Table, steps: int, seeds: list[int], data: Path) -> None:
    """Print the table. Raises UserError if the data are missing, and for what a recipe refuses."""

    def recipe(overrides: tuple[str, ...], seed: int) -> Recipe:
        # validation: what the loop reports of itself, on as little as it allows
        run = (
            f"optimisation.length={{steps: {steps}}}",
            f"training.seed={seed}",
            "training.validation_images=1",
            "training.portable=false",  # which is for processes that are started for it
        )
        return read_recipe(table.recipe, [*overrides, *run])

    plain = recipe((), seeds[0])
    for task in sorted({recipe(row.overrides, seeds[0]).data.task for row in table.rows}):
        read_shards_json(data / task)
    given = scores(identity, plain)
    print(f"{table.published}\n{table.note}\n")
    sets = sorted({dataset_name(Path(run.data)) for run in plain.evaluation.benchmarks})
    print(f"PSNR/SSIM on {', '.join(sets)} of {table.recipe}, {steps} steps, seeds {', '.join(map(str, seeds))}")
    if len(seeds) > 1:
        print("Means over the seeds; in brackets the range of their PSNR.")
    print("Such a run does not rank the variants: it shows that each trains.\n")
    heads = "".join(f"{run.benchmark:>22}{'paper':>14}" for run in plain.evaluation.benchmarks)
    print(f"{'':<16}{heads}{'s':>8}")
    show("degraded input", [given], table.input, None)
    for row in table.rows:
        began = time.perf_counter()
        recipes = [recipe(row.overrides, seed) for seed in seeds]
        results = [scores(train(each, data), each) for each in recipes]
        show(row.name, results, row.paper, time.perf_counter() - began)


def main() -> None:
    """A user's mistake is one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--steps", type=int, default=100, help="of each row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each row is trained once for each")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the built tasks are")
    arguments = parser.parse_args()
    try:
        ablate(TABLES[arguments.table], arguments.steps, arguments.seeds, arguments.data)
    except UserError as error:
        sys.exit(f"ablate: {error}")


if __name__ == "__main__":
    main()
