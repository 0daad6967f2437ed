"""What colour-blind eyes and a grey print see of the palette.

Vision is simulated with the matrices of Machado, Oliveira and Fernandes (2009, table 1, severity 1.0) on linear RGB;
distances are CIE 1976 Delta E in Lab. 2.3 is just noticeable side by side; 10 is seen at a glance.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from plotly.colors import sample_colorscale

from dashboards import style
from storage.records import Arm
from tests.synthetic import lr_axis

VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "grey print": [[0.2126, 0.7152, 0.0722]] * 3,
}
COLOURED = [vision for vision in VISIONS if vision != "grey print"]
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
D65 = [0.95047, 1.0, 1.08883]
APART = 12  # units of Lab between two arms, or an arm and the colour of divergence
SHADES = [style._hex(shade) for shade in sample_colorscale(style.LOSS_SCALE, 21)]  # from a low loss to a high one


def seen(colour: str, vision: str) -> np.ndarray:
    """A colour in Lab as that vision has it."""
    encoded = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    ratio = np.array(XYZ) @ np.clip(np.array(VISIONS[vision]) @ linear, 0, 1) / D65
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(one: str, other: str, vision: str) -> float:
    return float(np.linalg.norm(seen(one, vision) - seen(other, vision)))


@pytest.fixture(scope="module")
def arms() -> list[Arm]:
    """Two families, each with four constants and four rules: more than any study we ship."""
    axis = lr_axis(1e-3, 1.0, 4)
    return [
        Arm(f"{family} {momentum or rule}", family, family, momentum, axis, rule={"rule": "adaptive"} if rule else {})
        for family in ("sgd", "adam")
        for momentum, rule in [(0.0, 0), (0.5, 0), (0.9, 0), (0.99, 0), (None, 1), (None, 2), (None, 3), (None, 4)]
    ]


def test_the_simulation_agrees_with_what_is_known() -> None:
    assert seen("#ffffff", "normal") == pytest.approx([100, 0, 0], abs=0.02)
    assert seen("#ff0000", "normal") == pytest.approx([53.24, 80.09, 67.20], abs=0.05)
    assert apart("#ff0000", "#00ff00", "normal") > 150
    assert apart("#a65e00", "#648000", "deuteranopia") < apart("#a65e00", "#648000", "normal") / 3
    assert seen("#c2452d", "grey print")[1:] == pytest.approx([0, 0], abs=0.02)


@pytest.mark.parametrize("vision", COLOURED)
def test_arms_differ_from_each_other_and_from_divergence(arms: list[Arm], vision: str) -> None:
    colours = [look.colour for look in style.looks(arms).values()]
    assert len(colours) == 16
    for one, other in combinations([*colours, style.DIVERGED], 2):
        assert apart(one, other, vision) > APART, (one, other)


def test_in_grey_arms_differ_by_dash_and_marker(arms: list[Arm]) -> None:
    looks = style.looks(arms).values()
    assert len({(look.dash, look.marker) for look in looks}) == len(looks) == 16


@pytest.mark.parametrize("vision", VISIONS)
def test_a_higher_loss_is_always_a_darker_shade(vision: str) -> None:
    lightness = np.array([seen(shade, vision)[0] for shade in SHADES])
    assert (-np.diff(lightness) > 2.3).all()
    assert lightness[0] - lightness[-1] > 70


@pytest.mark.parametrize("vision", COLOURED)
def test_no_loss_looks_diverged_or_not_run(vision: str) -> None:
    """In grey some do: there the cells carry a cross or a dash, which `test_pictures` sees to."""
    assert min(apart(shade, style.DIVERGED, vision) for shade in SHADES) > 20
    assert min(apart(shade, style.NOT_RUN, vision) for shade in SHADES) > 15
    assert apart(style.DIVERGED, style.NOT_RUN, vision) > 40
