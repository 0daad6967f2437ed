"""What the adaptive momentum does, on a quadratic and on a network: prints a table and draws docs/figures/momentum.svg.

    python docs/momentum_example.py [--figure FILE]

Needs the `service` extra for its data, and `figures` (with a Chromium on the machine) for the picture.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import adamom

CONDITION = 100  # of the quadratic: its largest curvature, the smallest being 1
STEPS = 600  # of the network


def quadratic(momentum: object, lr: float, steps: int = 120) -> list[float]:
    """|x| after each step on a quadratic with 40 curvatures between 1 and CONDITION, from all ones."""
    curvatures = torch.logspace(0, math.log10(CONDITION), 40, dtype=torch.float64)
    x = torch.ones(40, dtype=torch.float64, requires_grad=True)
    optimizer = adamom.SGD([x], lr=lr, momentum=momentum)
    distances = []
    for _ in range(steps):
        optimizer.zero_grad()
        (curvatures * x * x / 2).sum().backward()
        optimizer.step()
        distances.append(x.detach().norm().item())
    return distances


def digits(momentum: object, batch_size: int, lr: float = 0.1, seed: int = 0) -> tuple[list[float], float]:
    """Beta at each step of a small network on scikit-learn's digits, and its final loss on all of them."""
    images, labels = (torch.tensor(column) for column in load_digits(return_X_y=True))
    images = images.float() / 16
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = adamom.SGD(model.parameters(), lr=lr, momentum=momentum)
    order = torch.Generator().manual_seed(seed)
    betas = []
    for _ in range(STEPS):
        batch = torch.randperm(len(labels), generator=order)[:batch_size]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        betas.append(optimizer.last_momentum)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(images), labels).item()
    return torch.stack(betas).tolist(), loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, help="write the picture to this file, such as docs/figures/momentum.svg")
    arguments = parser.parse_args()

    root = math.sqrt(CONDITION)
    best = ((root - 1) / (root + 1)) ** 2
    runs = {
        "gradient descent, its best rate": quadratic(0, 2 / (CONDITION + 1)),
        f"best constant momentum, {best:.3f}": quadratic(best, 4 / (root + 1) ** 2),
        "adaptive": quadratic("adaptive", 4 / (root + 1) ** 2),
    }
    print(f"{'a quadratic of condition 100':<36} {'|x| after 120 steps':>20}")
    for name, distances in runs.items():
        print(f"{name:<36} {distances[-1]:>20.2e}")

    smoothed = adamom.HeavyBall(smoothing=0.999)
    networks = {
        "adaptive, whole data": digits("adaptive", batch_size=1797),
        "adaptive, batches of 64": digits("adaptive", batch_size=64),
        "smoothed 0.999, batches of 64": digits(smoothed, batch_size=64),
        "constant 0, batches of 64": digits(0.0, batch_size=64),
        "constant 0.9, batches of 64": digits(0.9, batch_size=64),
    }
    print(f"\n{'a network on digits, lr 0.1':<36} {'mean beta':>12} {'loss':>8}")
    for name, (betas, loss) in networks.items():
        late = betas[STEPS // 2 :]
        print(f"{name:<36} {sum(late) / len(late):>12.3f} {loss:>8.4f}")

    if arguments.figure:
        draw(runs, {name: betas for name, (betas, _) in networks.items() if "constant" not in name}, arguments.figure)


def draw(runs: dict[str, list[float]], betas: dict[str, list[float]], file: Path) -> None:
    """Distances on the left, betas on the right."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=2, subplot_titles=("distance on a quadratic", "beta on a network"))
    colours = iter(("#888888", "#0072b2", "#d55e00", "#0072b2", "#d55e00", "#009e73"))
    for column, curves in enumerate((runs, betas), start=1):
        for name, values in curves.items():
            line = {"color": next(colours), "width": 1.5}
            drawn = values if column == 1 else averaged(values)
            figure.add_scatter(y=drawn, name=name, line=line, mode="lines", col=column, row=1, legend=f"legend{column}")
    figure.update_yaxes(type="log", exponentformat="power", col=1, row=1)
    figure.update_yaxes(range=[0, 1], col=2, row=1)
    figure.update_xaxes(title="step")
    figure.update_layout(
        template="simple_white",
        width=900,
        height=360,
        margin={"t": 40, "r": 20, "l": 60, "b": 50},
        legend1={"x": 0.01, "y": 0.02, "yanchor": "bottom"},
        legend2={"x": 0.7, "y": 0.2, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
    )
    assert isinstance(figure, go.Figure)
    figure.write_image(file)


def averaged(values: list[float], window: int = 10) -> list[float]:
    """The mean of the last ten at each step, so that a noisy curve can be read."""
    smooth: Tensor = torch.tensor(values).unfold(0, window, 1).mean(dim=1)
    return [round(value, 4) for value in smooth.tolist()]


if __name__ == "__main__":
    main()
