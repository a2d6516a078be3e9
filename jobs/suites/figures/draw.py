"""Draw a figure by its name."""

import importlib

from jobs.evaluation.published import Figure
from jobs.suites.figures.drawing import Drawing
from jobs.suites.places import Places
from jobs.suites.variants import Scale
from pipeline.errors import UserError


def draw(name: str, figure: Figure, places: Places, model: str | None, scale: Scale | None) -> Drawing:
    """The files of a figure. name: e.g. memnet-fig5. Raises UserError for what cannot be drawn, and why."""
    if not figure.draw:
        raise UserError(f"{name}: nothing to compute; it lacks {figure.lacking}")
    drawing = Drawing(figure, places, model, scale)
    for each in figure.draw:
        module, _, function = each.partition(".")
        made = len(drawing.files)
        try:
            importlib.import_module(f"jobs.suites.figures.{module}").DRAW[function](drawing)
        except UserError as error:
            if len(figure.draw) == 1:
                raise
            drawing.lacking.append(f"{function}: {error}")
        if len(drawing.files) == made and each == figure.draw[-1] and not drawing.files:
            raise UserError(f"{name}: nothing could be drawn: {'; '.join(drawing.lacking)}")
    return drawing
