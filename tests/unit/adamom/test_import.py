"""`import adamom` needs torch and nothing else."""

import functools
import subprocess
import sys

import pytest
import torch

import adamom

PROGRAM = """
import sys, torch
torch.optim.Adam([torch.ones(2, requires_grad=True)])  # torch loads what its optimizers need
before = set(sys.modules)
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ("adamom", "torch") and top not in sys.stdlib_module_names:
            raise ImportError(f"adamom asked for {name}")
sys.meta_path.insert(0, Refuse())
import adamom
parameter = torch.ones(2, requires_grad=True)
for optimizer in (adamom.SGD([parameter], 0.1, "adaptive"), adamom.AdamW([parameter], betas=("adaptive", 0.9))):
    parameter.square().sum().backward()
    optimizer.step()
foreign = {name.partition(".")[0] for name in set(sys.modules) - before} - {"adamom", "torch"}
print(sorted(foreign - set(sys.stdlib_module_names)))
"""


def test_import_adamom_needs_torch_and_nothing_else():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


UNCOMPILED = """
import sys, torch, adamom
adamom.SGD([torch.ones(2, requires_grad=True)], 0.1, "adaptive")
print("torch._dynamo" in sys.modules)
"""


def test_making_an_optimizer_leaves_the_compiler_alone():
    run = subprocess.run([sys.executable, "-c", UNCOMPILED], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "False"), run.stderr


def test_what_others_put_in_the_place_of_torchs_method_is_called(monkeypatch: pytest.MonkeyPatch):
    seen, torchs = [], torch.optim.Optimizer.add_param_group

    @functools.wraps(torchs)
    def patched(self: torch.optim.Optimizer, group: dict[str, object]) -> None:
        seen.append(len(group["params"]))
        torchs(self, group)

    monkeypatch.setattr(torch.optim.Optimizer, "add_param_group", patched)
    adamom.SGD([torch.ones(2, requires_grad=True)], 0.1)
    assert seen == [1]


def test_everything_on_the_menu_is_there():
    assert [name for name in adamom.__all__ if not hasattr(adamom, name)] == []
