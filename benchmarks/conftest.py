"""What all benchmarks share: what a record states, and nanoseconds an index."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import fastprio
from fastprio.bench import stamp
from fastprio.bench.peers import PEERS


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Everything is measured on one thread, as in ``fastprio bench``."""
    threads, ours = torch.get_num_threads(), fastprio.get_num_threads()
    torch.set_num_threads(1)
    fastprio.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    fastprio.set_num_threads(ours)


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., None]:
    """``timed(go, make, indices, rounds)``: times ``go(make())``, ``make`` off the clock, afresh for every round.

    ``indices``: how many a round handles; the record then has the median's ns an index.
    """

    def run(go: Callable[[Any], Any], make: Callable[[], Any], indices: int, rounds: int, warmup: int = 1) -> None:
        benchmark.extra_info["indices"] = indices
        benchmark.pedantic(go, setup=lambda: ((make(),), {}), rounds=rounds, warmup_rounds=warmup)

    return run


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Makes of pytest-benchmark's JSON a record: machine, versions, command, date, and for each test its statistics."""
    found = {
        entry["name"]: {
            "params": entry["params"] or {},
            "seconds": {key: entry["stats"][key] for key in ("median", "min", "iqr", "rounds")},
            **entry["extra_info"],
        }
        for entry in output_json["benchmarks"]
    }
    for entry in found.values():
        if "indices" in entry:
            entry["ns_per_index"] = 1e9 * entry["seconds"]["median"] / entry["indices"]
    timed_peers = {entry["params"].get("name") for entry in found.values()} & set(PEERS)
    peers = {what: version for name in timed_peers for what, version in PEERS[name].version().items()}
    record = {
        **stamp("pytest " + shlex.join(map(str, config.invocation_params.args)), peers),
        "benchmarks": found,
    }
    output_json.clear()
    output_json.update(record)
