"""The fused kernels: against the plain step in Triton's interpreter, in processes of their own, because it is switched
on by the environment; and compiled for GPUs, which needs none.

On a GPU they have not been run here.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

import adamom

PROGRAM = """
import json, sys
import torch
import adamom

fused = sys.argv[1] == "fused"
answers = []
for dtype in (torch.float32, torch.bfloat16):
    for options in ({}, {"weight_decay": 0.1, "maximize": True}):
        generator = torch.Generator().manual_seed(0)
        shapes = ((50, 100), (7,), (), (0,), (4097,), (8192,), (3,))
        params = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
        shifted = torch.randn(10, generator=generator).to(dtype)
        params.append(shifted[1:].requires_grad_())  # at an address that no 16 bytes begin at
        optimizer = adamom.SGD(params, 0.05, "adaptive", fused=fused, **options)
        betas = []
        for k in range(6):
            for i, param in enumerate(params):
                noise = torch.randn(param.shape, generator=generator).to(dtype)
                param.grad = param.detach() + noise / 4 if i or k > 1 else None  # the first joins later
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


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("name", ["change_kernel", "heavy_ball_kernel"])
def test_the_kernels_compile_and_move_sixteen_bytes_at_once_where_they_may(name: str, aligned: bool):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from adamom.kernels import fused

    constants = {"DECAYS": True, "DTYPE": triton.language.bfloat16, "ALIGNED": aligned, "BLOCK": fused.BLOCK}
    types = {
        "table": "*i64",
        "squares": "*fp32",
        "sign": "fp32",
        "decay": "fp32",
        **dict.fromkeys(constants, "constexpr"),
    }
    if name == "heavy_ball_kernel":
        types |= {"beta": "*fp32", "lr": "fp32"}
    kernel = getattr(fused, name)
    compiled = triton.compile(
        ASTSource(kernel, {each: types[each] for each in kernel.arg_names}, constexprs=constants),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": 8},
    )
    assert compiled.asm["cubin"]
    assert bool(re.search(r"ld\.global\.v4", compiled.asm["ptx"])) == aligned
    assert bool(re.search(r"st\.global\.v4", compiled.asm["ptx"])) == aligned


def test_a_step_that_asks_for_the_kernels_is_told_why_it_cannot_have_them():
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="contiguous tensors of float32, bfloat16 or float16, all on one GPU"):
        adamom.SGD([param], 0.1, "adaptive", fused=True).step()
    with pytest.raises(RuntimeError, match="learning rate that is a number"):
        adamom.SGD([param], torch.tensor(0.1), "adaptive", fused=True).step()


def test_the_table_names_every_number_once():
    from adamom.kernels.fused import BLOCK, table

    rows = table(((0, 10**6), (5, 7), (1, 2)), (2 * BLOCK + 3, 1), 4, torch.device("cpu"))
    assert rows.tolist() == [
        [0, 5, 1, BLOCK],
        [4 * BLOCK, 5 + 4 * BLOCK, 1 + 4 * BLOCK, BLOCK],
        [8 * BLOCK, 5 + 8 * BLOCK, 1 + 8 * BLOCK, 3],
        [10**6, 7, 2, 1],
    ]
