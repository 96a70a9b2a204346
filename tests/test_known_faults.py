"""Promise: faults that published code of these methods has are not here.

Those of one method are beside its tests: InfoBatch's annealing that never begins, a first priority raised twice
(`test_policies.py`); draws that land on zero (`test_zero.py`); IES keeping a smaller set than its last, a confidence
over the batch, a loss pass that moves batch norm (`test_policies_prune.py`); stale losses given to the wrong examples
(`test_policies_mixture.py`); a percentile that compares every loss with all (`test_selector_methods.py`) and never
accepts the least (`test_selectors.py`); fields lost at a resume (`test_all_policies.py`).
"""

import inspect
import random

import numpy as np
import pytest
import torch
from rank_helpers import on_ranks
from test_all_policies import NAMES, losses_at, new
from torch import nn
from torch.utils.data import DataLoader, dataloader

from fastprio import PriorityLoader, ScoreStore
from fastprio._random import Rng
from fastprio.policies import SCORE, TRAIN, Plan
from fastprio.policies.last_loss import LastLoss
from fastprio.testing import made_up


def code_of(function):
    return inspect.unwrap(function).__code__


@pytest.mark.parametrize("name", ["infobatch", "seta", "bls"])
def test_no_class_of_torchs_is_patched(name):
    """Their code replaces the loaders' iterator to pass indices along, and so every other loader's in the process."""
    classes = (DataLoader, dataloader._BaseDataLoaderIter, dataloader._SingleProcessDataLoaderIter)
    before = [{k: v for k, v in vars(c).items() if callable(v)} for c in classes]
    loader = PriorityLoader(range(40), 8, policy=new(name, 40))
    for batch in loader:
        loader.step(losses_at(40, 0)[batch])
    assert [{k: v for k, v in vars(c).items() if callable(v)} for c in classes] == before
    assert code_of(dataloader._BaseDataLoaderIter.__next__).co_filename == dataloader.__file__
    plain = next(iter(DataLoader(range(40), 8)))
    assert plain.tolist() == list(range(8))


@pytest.mark.parametrize("name", NAMES)
def test_no_global_generator_is_seeded_or_moved(name):
    """Theirs is seeded with a step's number at every epoch, for the user's own draws too."""
    store, rng = new(name, 60), np.random.default_rng(1)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    states = random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002
    for epoch in range(14):
        store.begin_epoch(epoch)
        plan = store.policy.plan(store, store.clock, Rng(epoch, epoch, 0, "plan"))
        if plan is None:
            store.policy.draw(store, 8, store.clock, Rng(1, epoch, 8, "draw"))
        for origin in ("train", "score"):
            at = rng.integers(0, 60, 90)
            store.update(at, rng.exponential(size=90), origin=origin, **made_up(store.policy, 90, rng))
    assert random.getstate() == states[0]
    assert repr(np.random.get_state()) == states[1]  # noqa: NPY002
    assert torch.get_rng_state().tolist() == states[2]


@pytest.mark.parametrize("name", ["infobatch", "seta", "bls", "orderdp", "random_subset"])
def test_another_seed_trains_on_another_subset(name):
    subsets = set()
    for seed in range(6):
        store = new(name, 60)
        for begin in range(0, 60, 6):
            store.update(np.arange(begin, begin + 6), losses_at(60, 3)[begin : begin + 6])
        for epoch in range(2):
            store.begin_epoch(epoch)
            plan = store.policy.plan(store, store.clock, Rng(seed, epoch, 0, "plan"))
        subsets.add(plan.codes.tobytes())
    assert len(subsets) == 6


FIRST = (1 << 24) + 1


class Last(LastLoss):
    """Trains on odd examples beyond 2^24 alone, whose numbers no float32 holds, and has others like them scored."""

    def plan(self, store, clock, rng):
        codes = np.zeros(len(store), np.uint8)
        codes[FIRST::4], codes[FIRST + 2 :: 4] = TRAIN, SCORE
        return Plan(codes, score=(SCORE,))


def of_large_numbers(rank, ranks):
    store = ScoreStore(FIRST + 64, Last())
    loader = PriorityLoader(range(len(store)), 8 // ranks, policy=store)
    for batch in loader:
        loader.step((batch - FIRST + 1).float())
    loader.score(nn.Identity(), lambda model, batch: (batch - FIRST + 1).float())
    known = np.flatnonzero(store.column("loss"))
    return known.tolist(), store.column("loss")[known].tolist(), int(store.seen().sum())


def test_losses_of_examples_beyond_float32s_integers_are_gathered_rightly():
    """Theirs travel between ranks as floats, together with the losses."""
    expected = list(range(FIRST, FIRST + 64, 2))
    for known, losses, seen in on_ranks(2, of_large_numbers, 2):
        assert known == expected
        assert losses == [i - FIRST + 1 for i in expected]
        assert seen == len(expected)
