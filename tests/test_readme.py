"""README is true: its code runs, its diffs are as short as it says, and it names what exists."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import fastprio
from fastprio.policies import registered
from fastprio.study.command import add_arguments, cells_for, protocol_for
from fastprio.study.corruptions import KINDS
from fastprio.study.methods import METHODS
from fastprio.study.presets import PRESETS
from fastprio.study.protocol import Protocol

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_readme_is_at_most_200_lines_long():
    assert len(README.splitlines()) <= 200


def test_readme_policy_takes_about_ten_lines_and_works():
    dataset = TensorDataset(torch.arange(64))
    (source,) = (block for block in blocks("python") if "@register" in block)
    space = {"fastprio": fastprio, "dataset": dataset}
    exec(source.replace("256", "16"), space)
    body = [line for line in source.splitlines() if line.strip() and "import" not in line and "loader" not in line]
    assert len(body) <= 11
    loader = space["loader"]
    for (x,) in loader:
        loader.step(x.float())
    assert loader.store.priorities.max() == pytest.approx(5.001)
    assert len(set(loader.store.priorities[:5].tolist())) == 5


def test_readme_diff_changes_at_most_four_lines_and_trains():
    diff = blocks("diff")[0]
    changed = [line for line in diff.splitlines() if line.startswith(("-", "+"))]
    assert len(changed) <= 4
    after = "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))
    torch.manual_seed(0)
    dataset = TensorDataset(torch.randn(300, 5), torch.randint(3, (300,)))
    model = torch.nn.Linear(5, 3)
    space = {
        "fastprio": fastprio,
        "dataset": dataset,
        "epochs": 2,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "F": torch.nn.functional,
    }
    exec(after.replace("num_workers=4", "num_workers=0"), space)
    assert space["loader"].store.stats()["coverage"] == 1.0


def test_readme_weighted_diff_is_one_line():
    diff = blocks("diff")[1].splitlines()
    assert [line[0] for line in diff] == ["-", "+"]
    sampler = eval(diff[1].split("= ", 1)[1], {"PrioritySampler": fastprio.PrioritySampler, "weights": [1.0, 2.0]})
    assert len(list(sampler)) == 100_000


def test_readme_names_methods_that_exist_and_how_many():
    ours = [name for name, policy in registered().items() if policy.__module__.startswith("fastprio.")]
    assert len(ours) == 31
    assert "thirty-one in all" in README
    (methods,) = re.findall(r"\*\*Methods\.\*\*.*?in all", README, re.DOTALL)
    assert set(re.findall(r'`"(\w+)"`', methods)) <= set(ours)


def test_every_linked_file_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_page_on_the_study_has_every_column_method_and_setting():
    page = (ROOT / "docs" / "study.md").read_text()
    names = [field.name for field in dataclasses.fields(Protocol) if field.name != "name"]
    for word in (*METHODS, *names):
        assert re.search(rf"`{re.escape(word)}[^`]*`", page), word
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    table = page.partition("### Columns")[2].partition("###")[0]
    columns = re.findall(r"^\| `([\w:.]+)` \|", table, re.MULTILINE)
    asked = cells_for(parser.parse_args(["run", "quick", "--columns", ",".join(columns)]))
    assert {cell.kind for cell in asked} == {*KINDS, "rare", "file:PATH"}
    for setting in re.findall(r"--set (\w+=[\d.,]+)", page):
        protocol_for(parser.parse_args(["run", "quick", "--set", setting]))
    assert set(re.findall(r"study run ([\w-]+)", page)) <= set(PRESETS)
    for target in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (ROOT / "docs" / target).exists(), target


def test_one_place_has_the_version():
    found = [
        path.name
        for path in [*ROOT.glob("*.toml"), *ROOT.glob("*.py"), *ROOT.glob("fastprio/**/*.py")]
        if re.search(rf'["\']{re.escape(fastprio.__version__)}["\']', path.read_text())
    ]
    assert found == ["_version.py"]


@pytest.mark.parametrize("names", ["Kakurenbo", "LateStopping", "SelectiveBackprop"])
def test_the_loops_of_methods_train(names):
    policies = (ROOT / "fastprio" / "policies" / "README.md").read_text()
    found = blocks("python") + re.findall(r"```python\n(.*?)```", policies, re.DOTALL)
    (source,) = (block for block in found if names in block)
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(300, 5), torch.randint(3, (300,)))
    model, loader = torch.nn.Linear(5, 3), fastprio.PriorityLoader(data, 16, epochs=3)
    space = {"fastprio": fastprio, "dataset": data, "epochs": 3, "model": model, "loader": loader}
    source = source.replace("256", "16").replace("128", "16").replace("...", "loss.backward()")
    source += "" if "backward" in source else "    loss.backward()\n"
    space |= {"F": torch.nn.functional, "new_model": lambda: model}
    if names == "LateStopping":
        scored = next(block for block in found if "def scored" in block)
        exec(scored[: scored.index("loader =")], space)
    exec(source, space)
    assert model.weight.grad.abs().sum() > 0


def test_the_citation_is_of_this_version():
    assert f"\nversion: {fastprio.__version__}\n" in (ROOT / "CITATION.cff").read_text()
