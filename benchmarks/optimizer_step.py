"""What one optimizer step costs: the adaptive optimizers beside torch.optim's with the same flags, in the same run.

    python benchmarks/optimizer_step.py [--json FILE]

Steps of ours and of the peer alternate, on the same gradients; the ratio is that of the median times. The state is
counted in bytes. Parameter lists have the shapes of ResNet-18, GPT-2 small, and of 1,000 tiny tensors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import adamom

Shapes = list[tuple[int, ...]]
SGD_TARGET, ADAM_TARGET = 1.6, 1.3


def resnet18() -> Shapes:
    """The parameters of torchvision's resnet18, in order: 62 tensors, 11.7 million numbers."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    wide = 64
    for out in (64, 128, 256, 512):
        for block in range(2):
            into = wide if block == 0 else out
            shapes += [(out, into, 3, 3), (out,), (out,), (out, out, 3, 3), (out,), (out,)]
            if into != out:
                shapes += [(out, into, 1, 1), (out,), (out,)]
        wide = out
    return [*shapes, (1000, 512), (1000,)]


def gpt2_small() -> Shapes:
    """The parameters of GPT-2 small, the output tied to the embedding: 148 tensors, 124 million numbers."""
    d = 768
    layer: Shapes = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [(50257, d), (1024, d), *layer * 12, (d,), (d,)]


def tiny_tensors() -> Shapes:
    """1,000 tensors of 16 to 64 numbers."""
    return [(16 + 16 * (i % 4),) for i in range(1000)]


LISTS: dict[str, Callable[[], Shapes]] = {
    "ResNet-18": resnet18,
    "GPT-2 small": gpt2_small,
    "1,000 tiny tensors": tiny_tensors,
}


def parameters(shapes: Shapes, grads: list[Tensor]) -> list[Tensor]:
    params = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return params


def milliseconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


def alternate(ours: Callable[[], Any], peer: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """The median milliseconds of each, the two taking turns, after three turns that do not count."""
    for _ in range(3):
        ours()
        peer()
    pairs, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(pairs) < 7:
        pairs.append((milliseconds(ours), milliseconds(peer)))
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in kept)


def row(name: str, ours: float, peer: float, target: float, floor: bool = False) -> dict[str, Any]:
    ratio = ours / peer
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "target": target, "met": ratio <= target}


def measure(name: str, shapes: Shapes, seconds: float) -> list[dict[str, Any]]:
    """The rows of one parameter list: a step of SGD and of Adam against torch's, and the state they keep."""
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(shape, generator=generator) for shape in shapes]
    rows = []
    cases = (
        ("SGD", {"momentum": 0.9}, {"momentum": "adaptive"}, SGD_TARGET, 1),
        ("SGD smoothed", {"momentum": 0.9}, {"momentum": adamom.HeavyBall(smoothing=0.999)}, None, 3),
        ("Adam", {}, {"betas": ("adaptive", 0.999)}, ADAM_TARGET, 1),
    )
    size = sum(grad.numel() * grad.element_size() for grad in grads)
    for label, constant, adaptive, target, extra in cases:
        kind = label.split()[0]
        ours = getattr(adamom, kind)(parameters(shapes, grads), lr=1e-6, foreach=True, **adaptive)
        peer = getattr(torch.optim, kind)(parameters(shapes, grads), lr=1e-6, foreach=True, **constant)
        if target is not None:
            rows.append(row(f"{label} step (ms), {name}", *alternate(ours.step, peer.step, seconds), target))
        else:
            ours.step(), peer.step()
        more = (state_bytes(ours) - state_bytes(peer)) / size
        rows.append(row(f"{label} extra state (buffers), {name}", more, extra, 1.0))
        del ours, peer
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each pair takes turns")
    parser.add_argument("--only", choices=list(LISTS), help="one parameter list")
    arguments = parser.parse_args()
    rows = []
    for name, shapes in LISTS.items():
        if arguments.only in (None, name):
            rows += measure(name, shapes(), arguments.seconds)
    for each in rows:
        print(
            f"{each['name']:<52} {each['ours']:>10.3f} {each['peer']:>10.3f}  ratio {each['ratio']:.3f}  "
            f"target {each['target']}  {'met' if each['met'] else 'NOT MET'}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
