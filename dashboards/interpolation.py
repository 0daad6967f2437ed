"""The law drawn between the grid points of a family's constants, with its uncertainty and the cells on top."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards import style
from dashboards.evidence import Evidence, Floats
from dashboards.law import HeldOut, Samples, SurfaceLaw, held_out_errors, samples
from dashboards.measures import Scale
from dashboards.style import number, plain

__all__ = ["LawInfo", "law_figure", "law_info"]

COLUMNS, ROWS = 81, 41  # points at which the law is drawn: finer than the eye asks for


class LawInfo(NamedTuple):
    """One family's law at the whole budget.

    x, y: log10 of lr and -log10 of 1 - beta, the axes of the drawing. drop, spread: the law and its standard deviation,
    arrays of shape (len(y), len(x)), as shares of the study's drop in loss. cells: what it was fitted to.
    """

    family: str
    x: Floats
    y: Floats
    drop: Floats
    spread: Floats
    cells: Samples
    errors: HeldOut

    def as_dict(self) -> dict[str, Any]:
        return {"family": self.family, "held_out_error": self.errors._asdict()}

    @property
    def sentence(self) -> str:
        """Which of the three predicts cells it has not seen best."""
        errors = {"the law": self.errors.law, "a Gaussian process": self.errors.gaussian_process}
        errors["the nearest grid point"] = self.errors.nearest
        best = min(errors, key=lambda name: errors[name])
        listed = ", ".join(f"{name} {number(100 * error)} %" for name, error in errors.items())
        return f"{self.family}: {listed} of the drop, over {self.errors.points} grid points; {best} predicts best."


def law_info(evidence: Evidence, scale: Scale, *, seed: int) -> tuple[LawInfo, ...]:
    """The law of every family that has enough cells with a constant momentum. seed: of the folds left out."""
    families = dict.fromkeys(arm.family for arm in evidence.study.arms)
    found = [(family, samples(evidence, scale, family)) for family in families]
    return tuple(_law(family, cells, seed) for family, cells in found if cells is not None)


def _law(family: str, cells: Samples, seed: int) -> LawInfo:
    x = np.linspace(cells.x.min(), cells.x.max(), COLUMNS)
    low, high = float((-cells.z).min()), float((-cells.z).max())
    y = np.linspace(low, high, ROWS) if high > low else np.array([low - 0.5, low + 0.5])
    across, up = np.meshgrid(x, y)
    z = np.clip(-up, cells.z.min(), cells.z.max())  # one momentum: a band of it
    inputs = np.column_stack([across.ravel(), z.ravel(), np.zeros(across.size)])
    drop, spread = SurfaceLaw.fit(cells).predict(inputs)
    shape = across.shape
    return LawInfo(family, x, y, drop.reshape(shape), spread.reshape(shape), cells, held_out_errors(cells, seed=seed))


def law_figure(info: tuple[LawInfo, ...]) -> go.Figure:
    """Per family the law's surface with the measured cells on it, and beside it how far it may be off."""
    titles = [title for each in info for title in (f"<b>{plain(each.family)}</b>", "standard deviation")]
    figure = make_subplots(rows=len(info), cols=2, subplot_titles=titles, horizontal_spacing=0.12, shared_yaxes=True)
    scale = {"x": 0.43, "thickness": 10, "outlinewidth": 0, "tickformat": ".0%"}
    spread = scale | {"x": 1.0}
    for row, each in enumerate(info, start=1):
        shared = {"x": 10**each.x, "y": each.y, "contours": {"coloring": "heatmap"}, "line": {"width": 0.4}}
        surface = {"zmin": 0, "zmax": 1, "colorscale": style.LOSS_SCALE[:-2], "showscale": row == 1, "colorbar": scale}
        off = {"zmin": 0, "zmax": 0.5, "colorscale": "Greys", "showscale": row == 1, "colorbar": spread}
        hover = {"hovertemplate": "lr %{x:.3g}: %{z:.1%}<extra></extra>"}
        figure.add_trace(go.Contour(z=each.drop, **shared, **surface, **hover), row=row, col=1)
        figure.add_trace(go.Contour(z=each.spread, **shared, **off, **hover), row=row, col=2)
        figure.add_trace(_cells(each), row=row, col=1)
        momenta = sorted(set((-each.cells.z).tolist()))
        labels = [f"β = {1 - 10**-at:.3g}" for at in momenta]
        for column in (1, 2):
            axis = style.lr_axis(float(10 ** each.x[0]), float(10 ** each.x[-1]))
            figure.update_xaxes(axis, title=style.axis_label("learning rate"), row=row, col=column)
            figure.update_yaxes(tickvals=momenta, ticktext=labels, row=row, col=column)
    style.layout(figure, height=60 + 320 * len(info))
    return figure.update_layout(showlegend=False, margin={"l": 84, "r": 60, "t": 40, "b": 56})


def _cells(info: LawInfo) -> go.Scatter:
    whole = info.cells.at(info.cells.t == 0)
    return go.Scatter(
        x=10**whole.x,
        y=-whole.z,
        mode="markers",
        marker={
            "size": 8,
            "color": whole.drop,
            "cmin": 0,
            "cmax": 1,
            "colorscale": style.LOSS_SCALE[:-2],
            "line": {"width": 1.2, "color": style.PAPER},
        },
        hovertemplate="lr %{x:.3g}: measured %{marker.color:.1%}<extra></extra>",
    )
