"""Several processes training one model: norms are those of the whole model, wherever its pieces are.

Two real processes over gloo; each case runs the same steps in one process and compares.
"""

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import adamom

STEPS, BATCH = 6, 8
OWN_METRIC = adamom.HeavyBall(metric="preconditioned")
OPTIMIZERS: dict[str, Callable[..., adamom.SGD | adamom.Adam]] = {
    "SGD": lambda params: adamom.SGD(params, 0.05, "adaptive"),
    "SGD nesterov decay": lambda params: adamom.SGD(params, 0.05, "adaptive", nesterov=True, weight_decay=0.01),
    "SGD per tensor": lambda params: adamom.SGD(params, 0.05, adamom.HeavyBall(scope="tensor")),
    "SGD smoothed": lambda params: adamom.SGD(params, 0.05, adamom.HeavyBall(smoothing=0.9)),
    "SGD conjugate": lambda params: adamom.SGD(params, 0.05, adamom.ConjugateGradient("HS")),
    "SGD memory": lambda params: adamom.SGD(params, 0.05, adamom.AdaptiveMemory()),
    "Adam": lambda params: adamom.Adam(params, 0.01, ("adaptive", 0.99)),
    "AdamW preconditioned": lambda params: adamom.AdamW(params, 0.01, (OWN_METRIC, 0.99)),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batch(k: int) -> Tensor:
    return torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(k), dtype=torch.float64)


def train(model: nn.Module, optimizer: Any, part: slice) -> list[list[float]]:
    """The betas of every step, training on a part of each batch."""
    betas = []
    for k in range(STEPS):
        inputs = batch(k)[part]
        optimizer.zero_grad()
        (model(inputs) - inputs[:, :3].sin()).square().mean().backward()
        optimizer.step()
        betas.append(optimizer.last_momentum.reshape(-1).tolist())
    return betas


def whole(param: Tensor) -> Tensor:
    return param.full_tensor() if hasattr(param, "full_tensor") else param


def worker(rank: int, sharding: str, folder: Path) -> None:
    """Train with every optimizer as one of two processes, and leave the answers in the folder."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    answers = {}
    mine = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    for name, build in OPTIMIZERS.items():
        model = network()
        if sharding == "DDP":
            model = DistributedDataParallel(model)
        else:
            fully_shard(model if sharding == "FSDP2" else model[0], mesh=init_device_mesh("cpu", (2,)))
        # A layer left whole is not averaged over processes by anybody: there, both train on all of the batch.
        betas = train(model, build(model.parameters()), slice(None) if sharding == "half FSDP2" else mine)
        weights = [whole(param.detach()).reshape(-1).tolist() for param in model.parameters()]
        answers[name] = (betas, weights)
    (folder / f"{rank}.json").write_text(json.dumps(answers))
    dist.barrier()
    os._exit(0)  # without gloo's own farewell: it can wait for ever for a peer that has left already


@pytest.mark.parametrize("sharding", ["DDP", "FSDP2", "half FSDP2"])
def test_two_processes_take_the_steps_of_one(sharding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    mp.start_processes(worker, (sharding, tmp_path), nprocs=2, start_method="spawn")
    for rank in (0, 1):
        answers = json.loads((tmp_path / f"{rank}.json").read_text())
        assert answers.keys() == OPTIMIZERS.keys()
        for name, (betas, weights) in answers.items():
            model = network()
            expected = train(model, OPTIMIZERS[name](model.parameters()), slice(None))
            for got, want in zip(betas, expected, strict=True):
                assert got == pytest.approx(want, rel=1e-7, abs=1e-9), (rank, name)
            for got, param in zip(weights, model.parameters(), strict=True):
                assert got == pytest.approx(param.detach().reshape(-1).tolist(), rel=1e-7, abs=1e-9), (rank, name)
