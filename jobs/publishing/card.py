"""card.md of a published version: what a reader must know before using the model."""

from pathlib import Path
from typing import Any

import jinja2

from jobs.documents import Provenance
from jobs.evaluation.metrics import table
from jobs.models import Network
from jobs.restoring.tiles import OVERLAP, TILE, WHOLE, is_global
from jobs.source import is_own
from pipeline.task import recorded

PLANES = {
    "y": "the Y plane of MATLAB's rgb2ycbcr, or on a grey image; the colours of an RGB image stay as they are",
    "gray": "grey images; the channels of an RGB image are restored one by one",
    "rgb": "RGB images",
}


def card(
    uri: str,
    model: Network,
    recipe: dict[str, Any],
    task: dict[str, Any],
    scores: dict[str, Any],
    provenance: dict[str, Any],
) -> str:
    """The text of card.md. uri: the version's. scores: from metrics.json."""
    told = Provenance.model_validate(provenance)
    options = dict(recipe["model"])
    architecture = options.pop("name")
    groups = {key: options.pop(key) for key, value in list(options.items()) if isinstance(value, dict) and value}
    degradation = recorded(task["degradation"])
    levels = "; ".join(f"{key.replace('_', ' ')} {', '.join(values)}" for key, values in degradation.said().items())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md").render(
        name=provenance["recipe"],
        uri=uri,
        version=uri.rsplit("/", 1)[1],
        architecture=architecture,
        provenance=told,
        imported=told.imported,
        licence=_licence(provenance["data"].get("licences", {})),
        degradation=degradation,
        levels=f" ({levels})" if levels else "",
        planes=PLANES[task["colour"]],
        parameters=sum(p.numel() for p in model.parameters()),
        options=_pairs(options),
        groups={key: _pairs(group) for key, group in groups.items()},
        own=_own(architecture, provenance),
        recipe=recipe,
        sources=", ".join(task["splits"]["train"]),
        mixture=_mixture(recipe["data"].get("mix", [])),
        rows=[(key, *row) for key, score in scores.items() for row in table(score)],
        scores=scores,
        in_channels=model.in_channels,
        bits=task.get("bits", 8),
        tiles=_tiles(scores) if is_global(model) else None,
    )


def _mixture(mix: list[dict[str, Any]]) -> str:
    """What a mixture of tasks takes of each, in words; empty for one task."""
    parts = []
    for share in mix:
        levels = ", ".join(f"{weight} of level {level}" for level, weight in (share.get("levels") or {}).items())
        parts.append(f"{share['weight']} of `{share['task']}`" + (f" ({levels})" if levels else ""))
    return f", mixed in the proportions {', '.join(parts)}" if parts else ""


def _licence(licences: dict[str, str | None]) -> str:
    """The licences of the data in words; empty if none is recorded."""
    return "; ".join(f"{dataset}: {licence or 'not known'}" for dataset, licence in licences.items())


def _pairs(options: dict[str, Any], above: str = "") -> str:
    """Options as text, those of a group within with the group's name before them."""
    return ", ".join(
        _pairs(value, f"{above}{key}.") if isinstance(value, dict) and value else f"{above}{key} {value}"
        for key, value in options.items()
    )


def _own(architecture: str, provenance: dict[str, Any]) -> dict[str, Any] | None:
    """Where to find the code of a network that is not memoir's."""
    if not is_own(architecture):
        return None
    module, _, cls = architecture.partition(":")
    return {"module": module, "cls": cls, "source": (provenance.get("network") or {}).get("source")}


def _tiles(scores: dict[str, Any]) -> dict[str, Any]:
    """How a model with global statistics restores large images, and how near the result is to the whole image."""
    measured = []
    for key, row in scores.items():
        if blended := row.get("blended"):
            psnr = "no" if blended["psnr"] is None else f"{blended['psnr']:.1f}"
            measured.append(f"{blended['image']} of {key} {psnr} dB")
    return {"whole": WHOLE, "side": TILE, "overlap": OVERLAP, "measured": "; ".join(measured)}
