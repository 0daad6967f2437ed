"""The page about momentum: its code runs, its names exist, and its numbers are those of its example."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import adamom

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "momentum.md").read_text()


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("momentum_example", DOCS / "momentum_example.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_rule_on_the_page_trains(capsys: pytest.CaptureFixture):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/momentum.md", "exec"), {"__name__": "page"})
    assert "tensor(" in capsys.readouterr().out


def test_every_rule_is_on_the_page():
    rules = [name for name in adamom.__all__ if isinstance(getattr(adamom, name), type)]
    rules = [name for name in rules if issubclass(getattr(adamom, name), adamom.Rule) and name != "Rule"]
    assert [name for name in rules if f"| `{name}` |" not in PAGE] == []


def test_the_quadratic_on_the_page_is_the_examples(example: ModuleType):
    said = dict(re.findall(r"^    (adaptive|best constant momentum, 0.669) +(\S+e\S+)$", PAGE, re.MULTILINE))
    assert f"{example.quadratic('adaptive', 4 / 121)[-1]:.2e}" == said["adaptive"]
    assert f"{example.quadratic((9 / 11) ** 2, 4 / 121)[-1]:.2e}" == said["best constant momentum, 0.669"]


def test_minibatch_noise_pulls_beta_down_and_smoothing_brings_it_back(example: ModuleType):
    def late(momentum: object, batch_size: int) -> float:
        betas, _ = example.digits(momentum, batch_size)
        return torch.tensor(betas[len(betas) // 2 :]).mean().item()

    noisy, smoothed = late("adaptive", 64), late(adamom.HeavyBall(smoothing=0.999), 64)
    assert noisy < 0.2
    assert smoothed > 0.7


def test_the_picture_on_the_page_is_there():
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", PAGE)
    assert (DOCS / picture).read_text().startswith("<svg")
