"""How things look everywhere: one colour per arm, a colour of its own for divergence, and how numbers are written.

Colour is never the only sign: arms differ in dash and marker too, diverged cells carry a cross and those not run a
dash, so that a grey print and a colour-blind reader see the same picture.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from storage.records import Arm

__all__ = [
    "CROWDED_DECADES",
    "DENSE",
    "DIVERGED",
    "LOSS_SCALE",
    "NOT_RUN",
    "Look",
    "axis_label",
    "counted",
    "decades",
    "fixed",
    "layout",
    "log_axis",
    "looks",
    "lr_axis",
    "number",
    "percent",
    "plain",
    "power",
    "wrapped",
]

INK, MUTED, GRID, PAPER = "#1b1f24", "#57606a", "#e4e7eb", "#ffffff"
DIVERGED = "#c2452d"  # on a blue-to-yellow scale the only red, and crossed besides
NOT_RUN = "#eceff2"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
LOSS_SCALE = "Cividis_r"  # even steps of lightness, made for colour-blind eyes; dark is a high loss

CONSTANT_RAMPS = (  # per family, small to large momentum: context, so it is quiet
    ["#7fa8d1", "#08306b"],
    ["#8fc384", "#225035"],
    ["#b3a2c7", "#3f1d63"],
    ["#b0aca5", "#33302b"],
)
# Twelve units of Lab apart, from each other, from the first two ramps and from DIVERGED, to colour-blind eyes too.
RULE_COLOURS = ("#e69f00", "#9437e0", "#ee7899", "#00a08a", "#772255", "#bb77ff", "#6b3d00", "#5c1fb0")
DENSE = 60  # learning rates beyond which cells and marks run into each other
CROWDED_DECADES = 7.5  # beyond, an axis has a tick every other decade
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "star", "hexagon", "pentagon", "cross")


class Look(NamedTuple):
    """How one arm is drawn, in every picture."""

    colour: str
    dash: str
    marker: str

    def fill(self, opacity: float) -> str:
        """The arm's colour for an area, such as a band over seeds."""
        red, green, blue = (int(self.colour[at : at + 2], 16) for at in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity})"


def looks(arms: Sequence[Arm]) -> dict[str, Look]:
    """Each arm's look by name: constants in their family's quiet ramp from light to dark, rules in strong colours."""
    families = list(dict.fromkeys(arm.family for arm in arms))
    colours: dict[str, str] = {}
    for index, family in enumerate(families):
        constants = [arm for arm in arms if arm.family == family and not arm.adaptive]
        constants.sort(key=lambda arm: arm.momentum or 0.0)
        ramp = CONSTANT_RAMPS[index % len(CONSTANT_RAMPS)]
        shades = sample_colorscale(ramp, len(constants)) if len(constants) > 1 else [ramp[1]]
        colours |= {arm.name: _hex(shade) for arm, shade in zip(constants, shades, strict=False)}
    rules = [arm for arm in arms if arm.adaptive]
    colours |= {arm.name: RULE_COLOURS[index % len(RULE_COLOURS)] for index, arm in enumerate(rules)}
    numbers = {arm.name: index for index, arm in enumerate(arms)}
    return {
        name: Look(colours[name], DASHES[at % len(DASHES)], MARKERS[at % len(MARKERS)]) for name, at in numbers.items()
    }


def _hex(colour: str) -> str:
    if colour.startswith("#"):
        return colour
    channels = colour[colour.index("(") + 1 : -1].split(",")
    return "#" + "".join(f"{round(float(channel)):02x}" for channel in channels)


def number(value: float) -> str:
    """A number to three significant digits, as a reader would write it: 0.0316, 12.3, 3.16e-5; "not run" for nan."""
    if math.isnan(value):
        return "not run"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        digits = f"{value:.3g}"
        return digits if "e" not in digits else f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def fixed(value: float) -> str:
    """A number to three significant digits, zeros at its end kept, so that a column of losses lines up."""
    if not math.isfinite(value) or value == 0 or not 1e-3 <= abs(value) < 1e3:
        return number(value)
    return f"{value:#.3g}".rstrip(".")


def decades(value: float) -> str:
    """A width in decades, to two digits after the point."""
    return "not run" if math.isnan(value) else f"{value + 0.0:.2f}"


def percent(share: float) -> str:
    """A share such as 0.25 as "25 %"."""
    return "not run" if math.isnan(share) else f"{share:.0%}".replace("%", " %")


def counted(number: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def plain(text: str) -> str:
    """Text from a study as a figure may show it: plotly reads a small HTML of its own in every label."""
    return html.escape(text, quote=False)


def wrapped(name: str, width: int) -> str:
    """A name for the margin of a figure, over two lines where one would push the picture aside."""
    if len(name) <= width:
        return plain(name)
    cut = name.rfind(" ", 0, width + 1)
    cut = cut if cut > 0 else width
    rest = name[cut:].strip()
    return f"{plain(name[:cut])}<br>{plain(rest if len(rest) <= width else rest[: width - 1] + '…')}"


def log_axis(low: float, high: float) -> dict[str, object]:
    """A logarithmic axis with ticks at 1, 2 and 5 times the powers of ten; at the powers alone where those crowd."""
    if not 0 < low < high < math.inf:
        return {"type": "log"}
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    ticks = [digit * 10.0**power for power in powers for digit in steps]
    return {"type": "log", "tickvals": ticks, "ticktext": [number(tick) for tick in ticks]}


def power(exponent: int) -> str:
    """A power of ten on an axis: 10⁻², 0.1, 1, 10, 10²."""
    if exponent in (-1, 0, 1):
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(SUPERSCRIPTS)


def lr_axis(first: float, last: float) -> dict[str, object]:
    """A logarithmic axis of learning rates, a tick each decade or every other."""
    step = 1 if math.log10(last / first) < CROWDED_DECADES else 2
    return {"type": "log", "dtick": step, "exponentformat": "power", "tickangle": 0, "tickfont": {"size": 11}}


def axis_label(text: str) -> dict[str, object]:
    return {"text": text, "font": {"size": 12, "color": MUTED}, "standoff": 8}


def layout(figure: go.Figure, *, height: int, width: int | None = None) -> go.Figure:
    """The figure in the house's dress: white paper, quiet grid, room for its labels."""
    axis = {"gridcolor": GRID, "linecolor": MUTED, "zeroline": False, "ticks": "outside", "tickcolor": GRID}
    return (
        figure.update_layout(
            template="none",
            height=height,
            width=width,
            paper_bgcolor=PAPER,
            plot_bgcolor=PAPER,
            font={"family": FONT, "size": 12, "color": INK},
            hoverlabel={"font": {"family": FONT, "size": 12}, "bgcolor": PAPER},
            margin={"l": 64, "r": 16, "t": 36, "b": 52},
        )
        .update_xaxes(**axis)
        .update_yaxes(**axis)
    )
