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
SGD_TARGET, ADAM_TARGET, GPU_TARGET = 1.6, 1.3, 0.8


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


def row(name: str, ours: float | None, peer: float | None, target: float, at_least: bool = False) -> dict[str, Any]:
    """One line of the table; without figures, what this machine cannot measure."""
    if ours is None or peer is None:
        return {"name": name, "ours": None, "peer": None, "ratio": None, "target": target, "met": None}
    ratio = ours / peer
    met = ratio >= target if at_least else ratio <= target
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "target": target, "met": met}


def measure(name: str, shapes: Shapes, seconds: float) -> list[dict[str, Any]]:
    """The rows of one parameter list: a step of SGD and of Adam against torch's, and the state they keep."""
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(shape, generator=generator) for shape in shapes]
    size = sum(grad.numel() * grad.element_size() for grad in grads)
    rows = []
    for kind, constant, adaptive, target in (
        ("SGD", {"momentum": 0.9}, {"momentum": "adaptive"}, SGD_TARGET),
        ("Adam", {}, {"betas": ("adaptive", 0.999)}, ADAM_TARGET),
    ):
        ours = getattr(adamom, kind)(parameters(shapes, grads), lr=1e-6, foreach=True, **adaptive)
        peer = getattr(torch.optim, kind)(parameters(shapes, grads), lr=1e-6, foreach=True, **constant)
        rows.append(row(f"{kind} step (ms), {name}", *alternate(ours.step, peer.step, seconds), target))
        extra = (state_bytes(ours) - state_bytes(peer)) / size
        rows.append(row(f"{kind} extra state (buffers), {name}", extra, 1.0, 1.0))
        del ours, peer
    smoothed = adamom.SGD(parameters(shapes, grads), lr=1e-6, momentum=adamom.HeavyBall(smoothing=0.999))
    smoothed.step()
    rows.append(row(f"SGD smoothed extra state (buffers), {name}", state_bytes(smoothed) / size - 1, 3.0, 1.0))
    return rows


def measure_fused(name: str, shapes: Shapes) -> dict[str, Any]:
    """The fused SGD step on a GPU against the time that its eight numbers per parameter need at the speed of a copy."""
    label = f"fused SGD step, share of the speed of a copy, {name}"
    if not torch.cuda.is_available():
        return row(label, None, None, GPU_TARGET)
    grads = [torch.randn(shape, device="cuda") for shape in shapes]
    params = [torch.zeros_like(grad, requires_grad=True) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer = adamom.SGD(params, lr=1e-6, momentum="adaptive", fused=True)
    source, target = (torch.empty(1 << 28, device="cuda") for _ in range(2))
    copy = gpu_milliseconds(lambda: target.copy_(source)) / (2 * source.nbytes)
    limit = copy * 8 * sum(grad.nbytes for grad in grads)
    return row(label, limit, gpu_milliseconds(optimizer.step), GPU_TARGET, at_least=True)


def gpu_milliseconds(step: Callable[[], Any], repeats: int = 50) -> float:
    """The mean time of a step, after ten that do not count."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for k in range(repeats + 10):
        if k == 10:
            start.record()
        step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each pair takes turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on the CPU")
    parser.add_argument("--only", choices=list(LISTS), help="one parameter list")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name, shapes in LISTS.items():
        if arguments.only in (None, name):
            rows += [*measure(name, shapes(), arguments.seconds), measure_fused(name, shapes())]
    for each in rows:
        print(line(each))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def line(row: dict[str, Any]) -> str:
    if row["met"] is None:
        return f"{row['name']:<58} not measured: this machine has no GPU"
    figures = f"{row['ours']:>10.3f} {row['peer']:>10.3f}  ratio {row['ratio']:.3f}  target {row['target']}"
    return f"{row['name']:<58} {figures}  {'met' if row['met'] else 'NOT MET'}"


if __name__ == "__main__":
    main()
