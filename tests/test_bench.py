"""The bench: peers draw by weight, records hold every turn, and a user's own loader is timed or refused."""

from __future__ import annotations

import json
import re
import runpy
import statistics
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import hide, only_line

from fastprio.bench import contenders, measure, peers, plot, present, throughput, training
from fastprio.cli import main
from fastprio.study.report import document

ROOT = Path(__file__).parent.parent
SMALL = ["bench", "--n", "300,1e3", "--batch", "64", "--repeats", "2", "--peers", "choice,alias"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings as short as can be: what they say is of no interest here."""
    monkeypatch.setattr(contenders, "AT_LEAST", 1000)
    monkeypatch.setattr(throughput, "SECONDS", 0.0)


def runnable(name: str) -> type[peers.Peer]:
    why = peers.PEERS[name].skipped()
    if why:
        pytest.skip(why)
    return peers.PEERS[name]


# The peers.


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_draws_by_weight_and_never_what_weighs_nothing(name: str) -> None:
    weights = np.r_[0.0, 1.0, 2.0, 0.0, 3.0, 4.0].astype(np.float32).repeat(50)
    peer = runnable(name)(weights, 300, 1)
    counts = np.bincount(np.concatenate([np.asarray(peer.draw()).astype(np.int64) for _ in range(200)]), minlength=300)
    assert len(counts) == 300
    expected = counts.sum() * (weights / weights.sum() if name != "uniform" else np.full(300, 1 / 300))
    assert not counts[expected == 0].any()
    able = expected > 0
    squares = (counts[able] - expected[able]) ** 2 / expected[able]
    assert squares.sum() < able.sum() + 8 * (2 * able.sum()) ** 0.5  # strata and shuffles vary less than chance
    if peer.updates:
        peer.update(np.arange(7), np.full(7, 1e6, np.float32))
        assert np.mean(np.asarray(peer.draw()) < 7) > 0.99


def test_a_peer_that_is_not_installed_or_too_small_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "cpprb")
    assert peers.PEERS["cpprb"].skipped() == "cpprb is not installed"
    assert peers.PEERS["multinomial"].skipped(2**24) is None
    assert "refuses more than 16,777,216" in str(peers.PEERS["multinomial"].skipped(2**24 + 1))


def test_a_peer_that_fails_to_import_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise ImportError('undefined symbol:\\n _ZN5torch')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(peers.TorchRL32, "module", "broken")
    assert peers.TorchRL32.skipped() == "broken cannot be imported: ImportError: undefined symbol: _ZN5torch"


# The measuring.


def test_every_contender_and_every_part_of_a_peer_is_timed() -> None:
    seen: list[str] = []
    found = measure.measure(300, 64, 2, tick=seen.append)
    assert seen == list(contenders.CONTENDERS) * 2
    assert all(len(turns) == 2 and min(turns) > 0 for turns in found.values())
    calls = measure.measure_calls(300, 64, 1, ["tree", "uniform", "alias"], seconds=0.0)
    assert list(calls) == ["tree", "alias"]
    assert all(tuple(parts) == measure.PARTS for parts in calls.values())
    assert min(measure.fixed_call_ns(repeats=1, calls=50).values()) > 0


def test_an_interval_holds_the_median_of_pairs() -> None:
    assert training.interval([float(k) for k in range(20, 0, -1)]) == (6, 15)
    assert training.interval([3.0, 1, 2, 6, 5, 4]) == (1, 6)
    with pytest.raises(ValueError, match="5 values are too few"):
        training.interval([1.0] * 5)


def test_an_interval_covers_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).lognormal(size=(2000, 20))
    held = [low <= 1 <= high for low, high in (training.interval(row.tolist()) for row in draws)]
    assert 0.94 < statistics.mean(held) < 0.98


# The command.


def test_the_bench_writes_every_turn_of_every_contender(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    assert main([*SMALL, "--json", str(path), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = json.loads(path.read_text())
    assert list(result["results"]) == list(result["calls"]) == list(result["limit"]) == ["300", "1000"]
    for found in result["results"].values():
        assert list(found) == list(contenders.CONTENDERS)
        assert found["uniform"]["ratio"] == 1
        for contender in found.values():
            assert len(contender["repeats"]) == 2
            assert min(contender["repeats"]) > 0
    for called in result["calls"].values():
        assert list(called) == ["tree", "choice", "alias"]
        assert all(len(part["repeats"]) == 2 for parts in called.values() for part in parts.values())
    assert {"machine", "versions", "date", "command"} <= set(result)
    assert result["command"].endswith("--n 300,1000 --batch 64 --repeats 2 --peers choice,alias")
    out = capsys.readouterr().out
    assert out.splitlines()[-2] == result["closing"]
    assert "in place of uniform loading" in result["closing"]
    assert " at N = 300 (" in result["closing"]
    for line in plot.lines(result):
        assert [n for n, _ in line[-1]] == [300, 1000]


def test_an_interrupted_bench_keeps_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(at: int) -> None:
        def interrupted(n: int, *given: Any, tick: Any = print) -> Any:
            if n == at and tick is not print:
                raise KeyboardInterrupt
            return measure.measure(n, *given)

        monkeypatch.setattr(throughput, "measure", interrupted)

    path = tmp_path / "bench.json"
    interrupt(300)
    assert main([*SMALL, "--json", str(path)]) == 130
    assert "interrupted before anything was finished" in only_line(capsys.readouterr().err)
    assert not path.exists()
    interrupt(1000)
    assert main([*SMALL, "--json", str(path)]) == 130
    assert "Interrupted: what follows is of N = 300" in capsys.readouterr().out
    result = json.loads(path.read_text())
    assert (list(result["results"]), result["finished"]) == (["300"], False)


def test_tables_need_no_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hide(monkeypatch, "rich")
    rows = present.contender_rows({1000: measure.summary({"uniform": [2.0, 4.0], "draw": [1.0, 1.0]})})
    present.show("a table", rows)
    out = capsys.readouterr().out
    assert "3.0 (1.00x)" in out
    assert "1.0 (0.38x)" in out


def test_a_plot_without_matplotlib_is_one_line_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, "matplotlib")
    assert main(["bench", "--plot", str(tmp_path / "a.png")]) == 2
    assert only_line(capsys.readouterr().err).endswith("matplotlib is missing: pip install 'fastprio[study]'")


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_the_bench_says_at_once_that_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main(["bench", option, str(tmp_path / "no" / "file")]) == 2
    assert f"cannot be written: pass another {option}" in only_line(capsys.readouterr().err)


def test_labels_are_moved_apart_and_stay_in_order() -> None:
    assert plot.spread([5.0, 0.0, 0.1], 1.0) == pytest.approx([5.0, -0.45, 0.55])
    moved = plot.spread([3.0, 2.9, 1.0, 3.1, 2.0], 1.0)
    assert min(np.diff(sorted(moved))) == pytest.approx(1.0)
    assert np.argsort(moved).tolist() == [2, 4, 1, 0, 3]


def test_progress_on_a_terminal_leaves_the_lines_that_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with present.Progress(3) as progress:
        progress.tick("N = 10: draw")
        progress.say("N = 10: done")
    assert "N = 10: done" in capsys.readouterr().out


def test_a_wide_table_is_cut_into_parts_that_fit() -> None:
    rows = [["what", "N = 1,000", "N = 10,000"], ["a" * 50, "1.0 (1.00x)", "2.0 (2.00x)"]]
    assert present.fitting(rows, 80) == [rows]
    assert present.fitting(rows, 60) == [[[row[0], row[k]] for row in rows] for k in (1, 2)]


def test_the_tables_of_the_benchmarks_are_what_the_records_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as when it is run
    table = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))
    assert {path.name for path in table["TABLES"]} == {"README.md", "scale.md", "guard.md", "study.md", "systems.md"}
    for path in table["TABLES"]:
        assert table["filled"](path) == path.read_text(), "run python benchmarks/table.py"


def test_the_report_of_the_study_is_what_its_runs_say() -> None:
    folder = ROOT / "benchmarks" / "records" / "study"
    study = document.load(folder)
    text = document.markdown(study, document.arranged(study))
    assert text == (folder / "report.md").read_text(), f"run fastprio study report {folder}"
    for name in re.findall(r"\]\(([\w.]+)\)", text):
        assert (folder / name).exists(), name


# A user's own loader.

SOURCE = """
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

data = TensorDataset(torch.arange(100.0), torch.arange(100))
class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(5))
class Broken(TensorDataset):
    def __getitem__(self, i):
        raise OSError("no such image")

def good(): return DataLoader(data, 32, shuffle=True)
def short(): return DataLoader(data, 32, shuffle=True, drop_last=True, num_workers=1)
def ordered(): return DataLoader(data, 32)
def stream(): return DataLoader(Stream(), 32)
def unbatched(): return DataLoader(data, None, shuffle=True)
def dataset(): return data
def raising(): raise FileNotFoundError("train.csv")
def broken(): return DataLoader(Broken(*data.tensors), 32, shuffle=True)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_data.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "own_bad.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("own_data", "own_bad"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["good", "short"])
def test_a_users_loader_is_compared_with_its_prioritized_likeness(
    own: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["bench", "--loader", f"own_data:{name}", "--pairs", "6"]) == 0
    result = json.loads((own / "fastprio-bench.json").read_text())
    assert len(result["pairs"]) == 6
    low, high = result["interval"]
    assert low <= result["ratio"] <= high
    assert result["ratio"] == statistics.median(b / a for a, b in result["pairs"])
    assert 0 < result["choosing_share"]["prioritized"] < 1
    assert result["examples"] == 100
    out = capsys.readouterr().out
    assert out.splitlines()[-2] == result["closing"]
    assert "of uniform loading" in result["closing"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("own_data", "expected MODULE:CALLABLE"),
        (":good", "expected MODULE:CALLABLE"),
        ("own_absent:good", "no module 'own_absent'"),
        ("own_bad:good", "importing own_bad: ZeroDivisionError: division by zero"),
        ("own_data:nothing", "own_data has no nothing"),
        ("own_data:data", "data is a TensorDataset: expected a callable"),
        ("own_data:raising", "calling raising: FileNotFoundError: train.csv"),
        ("own_data:dataset", "it returned a TensorDataset: expected a torch.utils.data.DataLoader"),
        ("own_data:stream", "IterableDataset"),
        ("own_data:ordered", "pass shuffle=True"),
        ("own_data:unbatched", "has no batch_size"),
        ("own_data:broken", "iterating it: OSError: no such image"),
    ],
)
def test_a_loader_that_cannot_be_timed_is_one_line_and_status_2(
    own: Path, capsys: pytest.CaptureFixture[str], spec: str, says: str
) -> None:
    assert main(["bench", "--loader", spec]) == 2
    assert says in only_line(capsys.readouterr().err)
    assert not (own / "fastprio-bench.json").exists()


@pytest.mark.parametrize("words", [["--plot", "a.png"], ["--pairs", "5"]])
def test_options_that_do_not_go_with_a_loader_are_refused(
    own: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["bench", "--loader", "own_data:good", *words]) == 2
    assert words[0] in only_line(capsys.readouterr().err)
