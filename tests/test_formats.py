"""Files of every format that there has been are read, for ever; of one that is to come they are refused.

``python tests/test_formats.py`` writes those of the format of this version, once: before it is released.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import generator

import fastprio
from fastprio import PriorityLoader, ScoreStore, snapshot
from fastprio.policies import InfoBatch, NoiseGuard

FORMATS = Path(__file__).parent / "data" / "formats"
FILES = sorted(FORMATS.glob("*/*.fastprio"))


def trained(policy, **arguments):
    """A loader in the middle of its second epoch, and what it learnt."""
    loader = PriorityLoader(range(60), 8, policy=policy, epochs=4, seed=7, **arguments)
    losses = torch.from_numpy(generator(3).random(60).astype(np.float32))
    for epoch in range(2):
        for number, batch in enumerate(loader):
            if (epoch, number) == (1, 3):
                break
            loader.step(losses[batch] + epoch)
        if not epoch:
            loader.score(torch.nn.Identity(), lambda _, batch: losses[batch])
    return loader


MADE = {
    "loss": lambda: trained("loss"),
    "unique": lambda: trained(fastprio.policies.LossPower(beta=0), scheme="unique"),
    "infobatch": lambda: trained(InfoBatch()),
    "guarded": lambda: trained(NoiseGuard("infobatch", chance=0.5)),
}


def contents(path):
    """What a user has of a saved store: its values, and how training goes on with it."""
    store = ScoreStore.load(path)
    policy = store.policy
    arrays = {"priorities": store.tree.priorities, "seen": store.seen(), **store.columns}
    found = {
        "arrays": {name: np.asarray(array).tolist() for name, array in arrays.items()},
        "policy": [policy.name, policy.config(), {name: repr(value) for name, value in policy.state.items()}],
        "kept": None if (kept := store.record()) is None else [sorted(kept[0]), kept[1]],
        "clock": [store.clock.epoch, store.clock.step, store.clock.progress],
        "store": [len(store), store.seed, store.epochs, store.on_nonfinite, store.tree.max_priority],
    }
    loader, going_on = PriorityLoader(range(len(store)), 8, policy=store, seed=7), []
    for batch in loader:
        going_on.append(batch.tolist())
        loader.skip()
    return found | {"going_on": going_on}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_file_of_an_earlier_version_is_read(path):
    assert json.loads(json.dumps(contents(path))) == json.loads(path.with_suffix(".json").read_text())


def test_there_are_files_of_every_format():
    assert {path.parent.name for path in FILES} == {str(number) for number in range(1, snapshot.FORMAT + 1)}
    assert {path.stem for path in FILES} == set(MADE)


@pytest.mark.parametrize("name", MADE)
def test_this_version_writes_them_to_the_bit(name, tmp_path):
    loader = MADE[name]()  # which lives, so that what it has in flight is saved as well
    loader.store.save(tmp_path / "store")
    assert (tmp_path / "store").read_bytes() == (FORMATS / str(snapshot.FORMAT) / f"{name}.fastprio").read_bytes()


UNSAFE = (
    r"\bimport (c?pickle|dill|cloudpickle|marshal|shelve)\b",
    r"(?<![.\w])(eval|exec)\(",
    r"torch\.load\((?!.*weights_only=True)",
    r"np\.load\((?!.*allow_pickle=False)",
)


def test_nothing_in_the_package_unpickles_or_runs_what_it_reads():
    lines = [
        f"{path.name}, line {number}: {line.strip()}"
        for path in Path(fastprio.__file__).parent.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
    ]
    assert len(lines) > 5000
    assert [line for line in lines if any(re.search(unsafe, line) for unsafe in UNSAFE)] == []


if __name__ == "__main__":
    for name, make in MADE.items():
        path = FORMATS / str(snapshot.FORMAT) / f"{name}.fastprio"
        path.parent.mkdir(parents=True, exist_ok=True)
        loader = make()
        loader.store.save(path)
        path.with_suffix(".json").write_text(json.dumps(contents(path), indent=1) + "\n")
