"""The command line: data files are checked, the demo leaves what it says, and errors are one line."""

from __future__ import annotations

import builtins
import gzip
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastprio
from fastprio.cli import main
from fastprio.study import data, demo
from fastprio.study.models import SmallCNN, evaluate

TINY = ["demo", "--data", "digits", "--examples", "200", "--epochs", "3", "--batch-size", "32", "--threads", "1"]


def idx(array: np.ndarray) -> bytes:
    """An array as the bytes of an IDX file."""
    return struct.pack(f">I{array.ndim}I", 8 << 8 | array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_images(folder: Path, train: int = 40, test: int = 12, size: int = 8) -> None:
    """The four files of a random data set with five classes."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for part, n in (("train", train), ("t10k", test)):
        labels = np.arange(n) % 5
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(rng.integers(0, 256, (n, size, size)))))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))


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


# The data.


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_file_reads_back_as_written(tmp_path: Path, suffix: str) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / f"file{suffix}"
    path.write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    np.testing.assert_array_equal(data.read_idx(path, 3), array)


GOOD = idx(np.zeros((2, 3, 4)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes: expected an IDX header of 16"),
        (GOOD[:10], "10 bytes: expected an IDX header of 16"),
        (b"\0\0\x0d\x03" + GOOD[4:], "magic number 0x00000d03: expected 0x00000803"),
        (idx(np.zeros(24)), "magic number 0x00000801: expected 0x00000803"),
        (GOOD[:-1], r"23 bytes of data: expected 24 for shape \(2, 3, 4\)"),
        (GOOD + b"\0", "25 bytes of data: expected 24"),
        (struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1), "0 bytes of data: expected 792281"),
    ],
)
def test_a_damaged_idx_file_is_refused_with_the_reason(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(data.StudyError, match=says):
        data.read_idx(path, 3)


@pytest.mark.parametrize(
    "content", [b"not gzip at all", gzip.compress(GOOD)[:-9], gzip.compress(GOOD)[:20] + b"\0" * 40]
)
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(data.StudyError, match="cannot be read"):
        data.read_idx(path, 3)


def test_loaded_images_are_normalised_and_labelled(tmp_path: Path) -> None:
    write_images(tmp_path)
    loaded = data.load(tmp_path, examples=30)
    assert (len(loaded.train), len(loaded.test), loaded.classes) == (30, 12, 5)
    assert loaded.train.images.shape == (30, 1, 8, 8)
    assert loaded.train.images.dtype == torch.float32
    assert loaded.train.labels.dtype == torch.int64
    assert abs(float(loaded.train.images.mean())) < 1e-5
    assert abs(float(loaded.train.images.std(correction=0)) - 1) < 1e-5
    images, labels = data.Batches(loaded.train).__getitems__([3, 0, 3])
    assert torch.equal(images[1], loaded.train.images[0])
    assert torch.equal(labels, loaded.train.labels[[3, 0, 3]])


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(39))))
    with pytest.raises(data.StudyError, match="40 images and 39 labels"):
        data.load(tmp_path)


@pytest.mark.parametrize("size", [8, 28])
def test_the_model_takes_both_image_sizes(size: int) -> None:
    model, images = SmallCNN(size, 10), torch.zeros(5, 1, size, size)
    assert model(images).shape == (5, 10)
    accuracy, loss = evaluate(model, images, torch.zeros(5, dtype=torch.int64), batch_size=2)
    assert accuracy in (0.0, 1.0)
    assert loss > 0
    assert model.training


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


def test_the_demo_runs_on_a_folder_of_idx_files(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    words = ["demo", "--data", str(tmp_path / "images"), "--out", str(tmp_path), "--epochs", "1", "--batch-size", "16"]
    assert main(words) == 0
    assert json.loads((tmp_path / "demo.json").read_text())["data"]["train"] == 40


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
        (["--data", "/no/such/folder"], "/no/such/folder: no such folder: pass --data DIR"),
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
