"""What was tried before the study was run, on held-out images: `python benchmarks/guard.py PART`.

PART is one of: rates: learning rates for uniform training. ies: thresholds of InstanceEarlyStopping. signals: after
one uniform epoch, numbers that might tell whether there is noise, and scores that might tell where. variants:
NoiseGuard's parts left out, exchanged, or with other numbers, each trained to the end as in the study.

Seeds from 100 on, paper-small's protocol, errors on its 5,000 held-out images: nothing here looks at test images or at
the seeds that the study reports. Finished runs stay in `records/guard/`; the command goes on with what is missing. The
signals alone are taken all at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from fastprio import policies, selectors
from fastprio.bench import stamp
from fastprio.policies.noise_guard import CLEAN, MISLABELED, UNDECIDED, UNSAFE
from fastprio.selectors.queue import Selection
from fastprio.study import grid
from fastprio.study.command import Progress
from fastprio.study.methods import BACKPROPS, METHODS, Method, Setting
from fastprio.study.presets import PAPER, PRESETS, RARE, THIRD
from fastprio.study.protocol import Cell
from fastprio.study.training import Run

RECORDS = Path(__file__).parent / "records" / "guard"
PROTOCOL = dataclasses.replace(PRESETS["paper-small"].protocol, evaluate="validation", evaluations=5)
SEEDS = 100, 101, 102
FEWER = SEEDS[:2]
MORE = ("labels", 0.1), ("pair", 0.25), ("symmetric", 0.4)
"""Noise that the study does not have."""


# Signals.


def signals(cell: Cell, budget: float) -> dict[str, Any]:
    """One uniform epoch, the first of a run of that budget, then a forward pass of everything."""
    protocol = dataclasses.replace(PROTOCOL, epochs=1, drops=(), warm_up=PROTOCOL.warm_up * PROTOCOL.epochs * budget)
    run = Run(protocol, cell)
    for _ in run.steps():
        pass
    split = run.examples.split
    run.model.eval()
    with torch.no_grad():
        p = torch.cat([run.model(part).double().softmax(1) for part in torch.split(split.images, 500)])
    of_label = p.gather(1, split.labels[:, None])[:, 0]
    loss = -of_label.clamp(min=1e-30).log()
    top = p.topk(3).values
    per_example = {
        "loss": loss,
        "-margin": top[:, 0] - of_label,
        "p third / p first": top[:, 2] / top[:, 0],
        "entropy": -(p * p.clamp(min=1e-30).log()).sum(1),
    }
    altered, chance = run.altered, run.setting.chance
    several = altered.any() and not altered.all()
    return {
        "tau": float((loss**2).mean().sqrt() / loss.mean()),
        **{f"above {c:g} chance": float((loss > c * chance).double().mean()) for c in (1, 1.1, 1.2, 1.3, 1.5)},
        "unsure: p first < 1/2": float((top[:, 0] < 0.5).double().mean()),
        "median loss / chance": float(loss.median()) / chance,
        "auroc": {
            name: float(roc_auc_score(altered, score)) if several else None for name, score in per_example.items()
        },
    }


def all_signals() -> None:
    """The table of signals, into records/guard/signals.json."""
    rows = []
    for kind, level in (*PAPER, RARE, *MORE):
        for seed in SEEDS:
            for budget in (THIRD, 1.0):
                cell = Cell(kind, level, "uniform", 1.0, seed)
                rows.append({"column": cell.column, "seed": seed, "budget": budget, **signals(cell, budget)})
                print(json.dumps(rows[-1]), flush=True)
    record = {**stamp("python benchmarks/guard.py signals"), "protocol": dataclasses.asdict(PROTOCOL), "rows": rows}
    (RECORDS / "signals.json").write_text(json.dumps(record, indent=1) + "\n")


# Learning rates, and when IES stops.


def all_rates() -> None:
    """Uniform training at its whole budget and at a third of it, into records/guard/rates/."""
    cells = [
        Cell(kind, level, method, budget, seed, scale)
        for seed in FEWER
        for kind, level in (("clean", 0.0), ("labels", 0.5), ("gauss", 0.5))
        for scale in (0.5, 0.7, 1.0, 1.4)
        for method, budget in (("uniform", 1.0), ("random subset", THIRD))
    ]
    grid.run_all(RECORDS / "rates", dataclasses.replace(PROTOCOL, lr=0.1), cells, 2, Progress())


def all_thresholds() -> None:
    """IES with several thresholds, into records/guard/ies/."""
    cells = [Cell(*column, "IES", 1.0, seed) for seed in FEWER for column in (("clean", 0.0), ("labels", 0.5))]
    for threshold in (0.004, 0.02, 0.1):
        protocol = dataclasses.replace(PROTOCOL, ies_threshold=threshold)
        grid.run_all(RECORDS / "ies" / f"{threshold:g}", protocol, cells, 2, Progress())


# Variants.


class SelectsWithin(selectors.NoiseGuard):
    """The inner selector selects within what is left in, under noise too."""

    def needs_scores(self, clock: Any) -> bool:
        """Once decided, always."""
        return self.verdict != UNDECIDED

    def __call__(self, losses: torch.Tensor, **options: Any) -> Selection:
        """The inner selector's choice."""
        return self._inner(losses, **options)


class Always(policies.NoiseGuard):
    """Without tau: what is above chance is set aside in any case."""

    def _decide(self, store: Any) -> None:
        super()._decide(store)
        if self.verdict != UNDECIDED:
            self.state["verdict"] = MISLABELED


class ByShare(policies.NoiseGuard):
    """One trigger: the share above chance, after the probe. Without tau."""

    def _decide(self, store: Any) -> None:
        if self.verdict == UNDECIDED:
            noisy = np.count_nonzero(self.suspects(store, self.clearly)) > self.share * store.seen().sum()
            self.state["verdict"] = MISLABELED if noisy else CLEAN


class NeverAside(policies.NoiseGuard):
    """Only the switch: uniform epochs under noise."""

    def _decide(self, store: Any) -> None:
        super()._decide(store)
        if self.verdict == MISLABELED:
            self.state["verdict"] = UNSAFE


class Higher(policies.NoiseGuard):
    """What is clearly worse than a guess is set aside, and no more."""

    def suspects(self, store: Any, clearly: float = 1.0) -> Any:
        """As if it were asked for those."""
        return super().suspects(store, self.clearly)


class TwoMeans(Always):
    """Without a trigger: the upper one of two clusters of the losses is set aside."""

    def suspects(self, store: Any, clearly: float = 1.0) -> Any:
        """What is in the upper cluster."""
        smoothed = store.column("smoothed")
        ordered = np.sort(smoothed)
        return smoothed >= ordered[policies.primitives.clusters(ordered, 2)[1]]


def _policy(kind: type[policies.NoiseGuard] = policies.NoiseGuard, **options: Any) -> Callable[[Setting], Any]:
    return lambda s: kind("uniform", s.chance, **options)


def _selector(kind: type[selectors.NoiseGuard] = selectors.NoiseGuard) -> Callable[[Setting], Any]:
    inner = METHODS["SB"].selector
    assert inner is not None
    return lambda s: kind(inner(s))


def _variant(what: str, policy: Callable[[Setting], Any], selector: Callable[[Setting], Any] | None = None) -> Method:
    return Method(what, policy, selector or _selector(), BACKPROPS, pooled=True)


VARIANTS = {
    "as it is": _variant("NoiseGuard around SB", _policy()),
    "SB within": _variant("SB selects within what is left in", _policy(), _selector(SelectsWithin)),
    "by share": _variant("trigger: share above chance alone", _policy(ByShare)),
    "always aside": _variant("no trigger", _policy(Always), _selector(SelectsWithin)),
    "two means": _variant("no trigger, two clusters", _policy(TwoMeans), _selector(SelectsWithin)),
    "never aside": _variant("only the switch", _policy(NeverAside)),
    "always aside under tau": _variant("share = 0", _policy(share=0.0)),
    "clearly 1": _variant("clearly = 1", _policy(clearly=1.0)),
    "above 1.2 chance": _variant("set aside above 1.2 times chance", _policy(Higher)),
    "last loss": _variant("momentum = 0", _policy(momentum=0.0)),
    "slower average": _variant("momentum = 0.8", _policy(momentum=0.8)),
    "none back": _variant("back = 0", _policy(back=0.0)),
    "quarter back": _variant("back = 0.25", _policy(back=0.25)),
    "two probes": _variant("probe = 2", _policy(probe=2)),
}


TRIGGERS = "as it is", "by share", "always aside", "two means"
"""What differs where there is no noise."""
IMAGES = *TRIGGERS, "SB within", "always aside under tau"
"""What differs where the noise is in the images."""
TRIED = {
    ("clean", 0.0): TRIGGERS,
    ("labels", 0.1): TRIGGERS,
    ("labels", 0.25): tuple(VARIANTS),
    ("labels", 0.5): tuple(VARIANTS),
    ("gauss", 0.5): IMAGES,
    ("shuffle", 0.5): TRIGGERS,
}


def all_variants() -> None:
    """Every variant and what it is compared with, into records/guard/variants/."""
    rows = "random subset", "uniform", "SB"
    cells = [
        Cell(kind, level, name, THIRD, seed)
        for seed in FEWER
        for (kind, level), names in TRIED.items()
        for name in (*rows, *names)
    ]
    grid.run_all(RECORDS / "variants", PROTOCOL, cells, 2, Progress())


PARTS = {"rates": all_rates, "ies": all_thresholds, "signals": all_signals, "variants": all_variants}
METHODS.update(VARIANTS)  # also in the processes that run them, which import this file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=PARTS)
    RECORDS.mkdir(parents=True, exist_ok=True)
    PARTS[parser.parse_args().part]()
