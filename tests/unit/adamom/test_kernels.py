"""The fused kernels against the plain step, in Triton's interpreter: processes of their own, because it is
switched on by the environment.

On a GPU the same code is compiled; that has not been run here.
"""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import torch
import adamom

fused = sys.argv[1] == "fused"
answers = []
for dtype in (torch.float32, torch.bfloat16):
    for options in ({}, {"weight_decay": 0.1, "maximize": True}):
        generator = torch.Generator().manual_seed(0)
        shapes = ((50, 100), (7,), (), (4097,))
        params = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
        optimizer = adamom.SGD(params, 0.05, "adaptive", fused=fused, **options)
        betas = []
        for _ in range(5):
            for param in params:
                noise = torch.randn(param.shape, generator=generator).to(dtype)
                param.grad = param.detach() + noise / 4
            optimizer.step()
            betas.append(optimizer.last_momentum.item())
        state = [optimizer.state[param][name] for name in ("momentum_buffer", "previous_grad") for param in params]
        answers.append([betas, [t.detach().float().reshape(-1).tolist() for t in (*params, *state)]])
print(json.dumps(answers))
"""


def run(how: str) -> list:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_fused_step_is_the_plain_one_state_included():
    fused, plain = run("fused"), run("plain")
    assert fused != plain  # they round in different places, so this compares two paths
    for k, ((betas, tensors), (plain_betas, plain_tensors)) in enumerate(zip(fused, plain, strict=True)):
        tolerance = 1e-5 if k < 2 else 5e-2  # float32, then bfloat16, whose plain step rounds between its operations
        assert betas == pytest.approx(plain_betas, rel=tolerance, abs=tolerance)
        for tensor, plain_tensor in zip(tensors, plain_tensors, strict=True):
            assert tensor == pytest.approx(plain_tensor, rel=tolerance, abs=2 * tolerance)
