"""The command line: the demo leaves what it says, and errors are one line."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from study_helpers import write_cifar, write_images

import fastprio
from fastprio.cli import main
from fastprio.study import data, demo

TINY = ["demo", "--data", "digits", "--examples", "200", "--epochs", "3", "--batch-size", "32", "--threads", "1"]


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Makes importing these packages fail as if they were not installed."""
    imports = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imports(name, *args, **kwargs)

    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            monkeypatch.setitem(sys.modules, name, None)  # what importlib.import_module trips over
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(builtins, "__import__", fail)


def only_line(text: str) -> str:
    """The text without its newline, checked to be one line."""
    assert text.count("\n") == 1, text
    assert text.endswith("\n"), text
    return text.strip()


# The demo.


def test_the_demo_compares_equal_work_and_leaves_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "demo.json").read_text())
    assert result["finished"]
    assert result["config"]["examples"] == result["data"]["train"] == 200
    uniform, prioritized = (result["arms"][name]["epochs"] for name in ("uniform", "prioritized"))
    assert len(uniform) == len(prioritized) == 3
    for a, b in zip(uniform, prioritized, strict=True):
        for count in ("batches", "forwards", "backprops"):
            assert a[count] == b[count]
        assert 0 <= a["test_accuracy"] <= 1
        assert 0 < b["draw_seconds"] + b["reduce_seconds"] < b["train_seconds"]
    assert uniform[-1]["backprops"] == 600
    assert all(done["store"]["coverage"] == 1 for done in prioritized)
    assert prioritized[0]["priorities"] != prioritized[-1]["priorities"]
    assert "uniform" in capsys.readouterr().out
    assert [row["arm"] for row in result["table"]] == ["uniform", "prioritized"]
    for row in result["table"]:
        assert 0 < row["choosing_share"] < 1


def test_the_demo_repeats_itself_for_a_seed(tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert main([*TINY, "--seed", seed, "--out", str(tmp_path / name)]) == 0
        arms = json.loads((tmp_path / name / "demo.json").read_text())["arms"]
        found.append([done["test_loss"] for arm in arms.values() for done in arm["epochs"]])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_policy_that_leaves_examples_out_is_counted_truly(tmp_path: Path) -> None:
    assert main([*TINY, "--policy", "infobatch", "--epochs", "4", "--out", str(tmp_path)]) == 0
    uniform, prioritized = json.loads((tmp_path / "demo.json").read_text())["table"]
    assert uniform["backprops"] == 800
    assert 200 < prioritized["backprops"] < 800


def write_module(folder: Path) -> None:
    """A module with a function that returns two data sets of colour images."""
    lines = [
        "import torch",
        "def sets():",
        "    images = torch.randn(52, 3, 12, 12, generator=torch.Generator().manual_seed(0))",
        "    items = [(image, row % 5) for row, image in enumerate(images)]",
        "    return items[:40], items[40:]",
    ]
    (folder / "own_sets.py").write_text("\n".join(lines))


@pytest.mark.parametrize("data", ["images", "cifar", "own_sets:sets"])
def test_the_demo_runs_on_files_and_on_ones_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which the command adds the current folder
    write_images(tmp_path / "images")
    write_cifar(tmp_path / "cifar" / "cifar-10-batches-bin", "CIFAR-10")
    write_module(tmp_path)
    assert main(["demo", "--data", data, "--out", "out", "--epochs", "1", "--batch-size", "16"]) == 0
    assert json.loads((tmp_path / "out" / "demo.json").read_text())["data"]["train"] == 40


def test_images_that_the_demos_model_does_not_take_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", size=10)
    assert main(["demo", "--data", str(tmp_path / "images"), "--out", str(tmp_path)]) == 2
    assert "images of 10x10: the model takes squares of a multiple of 4" in only_line(capsys.readouterr().err)


def test_without_its_default_folder_the_demo_takes_digits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (data, demo):
        monkeypatch.setattr(module, "FASHION_MNIST", tmp_path / "nowhere")
    assert main([word for word in TINY if word not in ("--data", "digits")] + ["--out", str(tmp_path)]) == 0
    assert "nowhere is absent: training on scikit-learn's digits" in capsys.readouterr().out


def test_an_interrupted_demo_keeps_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, steps = fastprio.PrioritySampler.step, 0

    def interrupted(self: Any, losses: Any, **observed: Any) -> Any:
        nonlocal steps
        steps += len(self.store) == 200  # not those of the rehearsal
        if steps == 10:  # in the second epoch of seven batches
            raise KeyboardInterrupt
        return step(self, losses, **observed)

    monkeypatch.setattr(fastprio.PrioritySampler, "step", interrupted)
    assert main([*TINY, "--out", str(tmp_path)]) == 130
    result = json.loads((tmp_path / "demo.json").read_text())
    assert not result["finished"]
    assert [len(result["arms"][name]["epochs"]) for name in ("uniform", "prioritized")] == [1, 1]
    assert result["closing"].startswith("Interrupted: after 1 epoch of 200 examples")
    assert (tmp_path / "demo.png").exists()
    assert "Interrupted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data", "/no/such/folder"], "/no/such/folder: no such folder: expected one with the files"),
        (["--data", "no_such_module:sets"], "data = 'no_such_module:sets': No module named"),
        (["--data", "digits", "--epochs", "0"], "epochs = 0: expected at least 1"),
        (["--data", "digits", "--lr", "nan"], "lr = nan"),
        (["--data", "digits", "--examples", "0"], "examples = 0"),
        (["--data", "digits", "--policy", "nonsense"], "policy = 'nonsense': expected"),
    ],
)
def test_what_the_demo_cannot_do_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["demo", "--out", str(tmp_path), *words]) == 2
    assert says in only_line(capsys.readouterr().err)


@pytest.mark.parametrize("package", ["rich", "matplotlib", "sklearn"])
def test_a_missing_extra_is_one_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    hide(monkeypatch, package)
    assert main([*TINY, "--out", str(tmp_path)]) == 2
    line = only_line(capsys.readouterr().err)
    assert line == f"fastprio demo: {package} is missing: pip install 'fastprio[study]'"


# The rest.


@pytest.mark.parametrize(
    "words", [["bench", "--n", "many"], ["bench", "--repeats", "0"], ["bench", "--peers", "x"], ["nonsense"], []]
)
def test_arguments_that_make_no_sense_end_with_status_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"fastprio {fastprio.__version__}\n"


def test_output_that_nobody_reads_any_more_is_no_traceback() -> None:
    words = [sys.executable, "-c", "import sys; from fastprio.cli import main; sys.exit(main())"]
    listing = [*words, "study", "run", "paper-small", "--list", "--seeds", "0-999"]
    process = subprocess.Popen(listing, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141
