"""DRCNet's figure 5 (b): PSNR by the weight alpha of the contrastive term, with negatives of the same class and of others."""

from jobs.evaluation.evaluate import dataset_of, evaluate
from jobs.suites.figures.drawing import Drawing
from jobs.suites.figures.plot import Series, plot
from jobs.suites.sets import lacking, run_of
from jobs.suites.variants import trained_variant
from pipeline.errors import UserError

ALPHAS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14)


def alphas(drawing: Drawing) -> None:
    """The networks of the sweep that are trained, or all of them where a scale is given, on SIDD or the samples' benchmark."""
    places = drawing.places
    rows: list[list[str | float]] = []
    missing = []
    for kind in ("intra", "extra"):
        for alpha in ALPHAS:
            weight = f"model.contrastive.alpha={alpha:g}"
            overrides = (f"model.contrastive.negatives={kind}", weight) if alpha else ("model.contrastive=null",)
            which = drawing.variant(overrides, 1)
            run = which.recipe.evaluation.benchmarks[0]
            if drawing.scale != "sample":
                run = run_of("SIDD", "pairs-rgb-float", places.datasets)
                if line := lacking("SIDD", places.datasets):
                    raise UserError(line)
            name = trained_variant(which, places, train=drawing.scale is not None)
            if name is None:
                missing.append(which.command)
                continue
            row = evaluate(name, run, places.runs, places.trust, places.store)
            rows.append([kind, alpha, row["psnr"]])
            line = f"{dataset_of(run)}, {run.benchmark}: {row['images']} images, {row['protocol']}"
            drawing.ran += [] if line in drawing.ran else [line]
    if missing:
        drawing.lacking.append(f"{len(missing)} of {2 * len(ALPHAS)} networks; `{missing[0]}` trains the first")
    if not rows:
        raise UserError(f"none of the networks is trained; `{missing[0]}` trains the first, or --scale sample")
    drawing.csv("alpha.csv", ["negatives", "alpha", "PSNR"], rows)
    series = [
        Series(f"{kind.capitalize()}-CR", [(float(alpha), float(psnr)) for k, alpha, psnr in rows if k == kind])
        for kind in ("intra", "extra")
    ]
    drawing.svg("alpha.svg", plot("PSNR by the weight of the contrastive term", "alpha", "PSNR (dB)", series))


DRAW = {"alphas": alphas}
