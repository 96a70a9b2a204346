"""Promise: whatever is done to a store, in whatever order, it stays what a plain list of rows is."""

import math
import os
import tempfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from test_store import state_of

from fastprio import ScoreStore
from fastprio.policies import LossPower, power

EPOCHS, LARGEST = 5, float(np.finfo(np.float32).max)
indices = st.integers(0, 39)
losses = st.one_of(
    st.sampled_from([0.0, 1.0, 0.5, 2.0**-149, 2.0**-100, 2.0**100, LARGEST]), st.floats(0, 16, width=32)
)
nonfinite = st.sampled_from([math.nan, math.inf, -math.inf])


def rounded(x):
    return float(np.float32(x))


class StoreMachine(RuleBasedStateMachine):
    @initialize(
        size=st.sampled_from([1, 7, 8, 9, 40]),
        alpha=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
        ema=st.sampled_from([0.0, 0.5, 0.9]),
        skips=st.booleans(),
    )
    def begin(self, size, alpha, ema, skips):
        self.alpha, self.ema, self.skips = alpha, ema, skips
        self.store = self.new(size)
        self.rows = [self.unseen_row(0.0) for _ in range(size)]
        self.largest, self.steps, self.skipped, self.epoch, self.progress = 1.0, 0, 0, 0, 0.0
        self.kept = None

    def new(self, size):
        policy, mode = LossPower(self.alpha, ema=self.ema), "skip" if self.skips else "raise"
        return ScoreStore(size, policy, epochs=EPOCHS, on_nonfinite=mode, columns={"note": "int32"})

    @staticmethod
    def unseen_row(priority):
        return {"loss": 0.0, "seen": False, "fresh": False, "step": None, "priority": priority, "note": 0}

    def raised(self, raw):
        return rounded(min(power(raw, self.alpha), LARGEST))

    def plain_update(self, pairs):
        for i, loss in pairs:
            row = self.rows[i]
            value = rounded(loss)
            if self.ema and row["seen"]:
                value = rounded(self.ema * row["loss"] + (1 - self.ema) * value)
            raw = value + 1e-6
            self.largest = max(self.largest, raw)
            row.update(loss=value, seen=True, fresh=True, step=self.store.clock.step - 1, priority=self.raised(raw))

    @rule(pairs=st.lists(st.tuples(indices, losses), max_size=20), origin=st.sampled_from(["train", "score"]))
    def update(self, pairs, origin):
        pairs = [(i % len(self.rows), loss) for i, loss in pairs]
        at, values = np.array([i for i, _ in pairs], np.int64), torch.tensor([loss for _, loss in pairs])
        self.store.update(at, values, origin=origin)
        self.plain_update(pairs)
        self.steps += 1

    @rule(pairs=st.lists(st.tuples(indices, losses | nonfinite | nonfinite), min_size=1, max_size=10))
    def update_with_losses_that_are_not_finite(self, pairs):
        pairs = [(i % len(self.rows), loss) for i, loss in pairs]
        at, values = [i for i, _ in pairs], np.array([loss for _, loss in pairs], np.float32)
        bad = sum(not math.isfinite(loss) for _, loss in pairs)
        if bad and not self.skips:
            self.refused(lambda: self.store.update(at, values), ValueError, "expected finite losses")
            return
        self.store.update(at, values)
        self.plain_update([(i, loss) for i, loss in pairs if math.isfinite(loss)])
        self.skipped += bad
        self.steps += 1

    @rule(good=st.lists(indices, max_size=5), bad=st.sampled_from([-1, -(2**63), 2**40, None]), place=st.integers(0, 5))
    def update_with_a_bad_index(self, good, bad, place):
        at = [i % len(self.rows) for i in good]
        at.insert(place, len(self.rows) if bad is None else bad)
        self.refused(lambda: self.store.update(at, np.ones(len(at))), IndexError, "expected 0 <= index")

    @rule(good=st.lists(indices, max_size=5), bad=st.sampled_from([-1.0, -1e-45]))
    def update_with_a_negative_loss(self, good, bad):
        at = [i % len(self.rows) for i in [*good, 0]]
        values = np.array([1.0] * len(good) + [bad], np.float32)
        self.refused(lambda: self.store.update(at, values), ValueError, "expects losses >= 0")

    @rule(index=indices, loss=losses)
    def update_of_another_model(self, index, loss):
        self.store.update([index % len(self.rows)], [loss], origin="reference")
        self.steps += 1

    @rule(pairs=st.lists(st.tuples(indices, losses), max_size=10))
    def set_priorities(self, pairs):
        pairs = [(i % len(self.rows), p) for i, p in pairs]
        self.store.set_priorities([i for i, _ in pairs], np.array([p for _, p in pairs], np.float32))
        for i, priority in pairs:
            self.rows[i]["priority"] = priority

    @rule(index=indices, value=st.integers(-(2**31), 2**31 - 1))
    def write_a_column(self, index, value):
        self.store.column("note")[index % len(self.rows)] = value
        self.rows[index % len(self.rows)]["note"] = value

    @rule()
    def admit_unseen(self):
        self.store.admit_unseen()
        for row in self.rows:
            if not row["seen"] and row["priority"] == 0:
                row["priority"] = self.raised(self.largest)

    @rule(epoch=st.integers(0, 7), share=st.none() | st.floats(0, 1))
    def begin_epoch(self, epoch, share):
        self.store.begin_epoch(epoch)
        if share is not None:
            self.store.set_progress(share)
        self.epoch, self.progress = epoch, min(1.0, (epoch + (share or 0.0)) / EPOCHS)
        for row in self.rows:
            row["fresh"] = False

    @rule(size=st.integers(1, 40))
    def resize(self, size):
        self.store.resize(size)
        grown = [self.unseen_row(self.raised(self.largest)) for _ in range(size - len(self.rows))]
        self.rows = [*self.rows[:size], *grown]

    @rule(seed=st.integers(0, 3), count=st.integers(1, 40))
    def draw_without_replacement(self, seed, count):
        positive = [i for i, row in enumerate(self.rows) if row["priority"] > 0]
        count = min(count, len(positive))
        if count:
            drawn, _ = self.store.tree.sample(count, seed=seed, scheme="epoch")
            assert len(set(drawn.tolist())) == count
            assert set(drawn.tolist()) <= set(positive)

    @rule(how=st.sampled_from(["dict", "file"]))
    def comes_back(self, how):
        before = state_of(self.store)
        if how == "dict":
            other = self.new(len(self.rows))
            other.load_state_dict(self.store.state_dict())
        else:
            with tempfile.TemporaryDirectory() as folder:
                self.store.save(os.path.join(folder, "store"))
                other = ScoreStore.load(os.path.join(folder, "store"))
        assert state_of(other) == before == state_of(self.store)
        self.store = other

    @rule()
    def keep_a_state(self):
        plain = (self.largest, self.steps, self.skipped, self.epoch, self.progress)
        self.kept = self.store.state_dict(), [dict(row) for row in self.rows], plain, state_of(self.store)

    @rule()
    def go_back_to_the_state_kept(self):
        if self.kept is None:
            return
        saved, rows, plain, hashed = self.kept
        if len(rows) != len(self.rows):
            self.refused(lambda: self.store.load_state_dict(saved), ValueError, "size is")
            return
        self.store.load_state_dict(saved)
        assert state_of(self.store) == hashed
        self.rows = [dict(row) for row in rows]
        self.largest, self.steps, self.skipped, self.epoch, self.progress = plain

    def refused(self, call, error, message):
        before = state_of(self.store)
        with pytest.raises(error, match=message):
            call()
        assert state_of(self.store) == before

    @invariant()
    def is_what_the_rows_are(self):
        store, rows = self.store, self.rows
        assert len(store) == len(store.tree) == len(rows)
        assert store.priorities.tolist() == [row["priority"] for row in rows]
        assert store.column("loss").tolist() == [row["loss"] for row in rows]
        assert store.column("note").tolist() == [row["note"] for row in rows]
        assert store.seen().tolist() == [row["seen"] for row in rows]
        assert store.all_seen() == all(row["seen"] for row in rows)
        assert (store.tree.total > 0) or not any(row["priority"] for row in rows) or store.tree.parked[0]
        assert (store.clock.step, store.clock.epoch, store.clock.progress) == (self.steps, self.epoch, self.progress)
        assert rounded(store.policy.unseen()) == self.raised(self.largest)

    @rule()
    def stats(self):
        stats, rows = self.store.stats(), self.rows
        seen = sum(row["seen"] for row in rows)
        assert stats["coverage"] == seen / len(rows)
        ages = [self.store.clock.step - 1 - row["step"] for row in rows if row["step"] is not None]
        assert stats["score_age"] == (sum(ages) / len(ages) if ages else 0.0)
        assert stats["staleness"] == (1 - sum(row["fresh"] for row in rows) / seen if seen else 0.0)
        assert stats["skipped_nonfinite"] == self.skipped
        assert stats["updates"] == self.steps
        if self.store.tree.total:
            p = [row["priority"] for row in rows]
            squares = math.fsum(x * x for x in p)
            if squares > 1e-300:
                assert stats["effective_sample_size"] == pytest.approx(math.fsum(p) ** 2 / squares, rel=1e-9)
            assert stats["top_1pct_share"] == pytest.approx(max(p) / math.fsum(p), rel=1e-9)


StoreMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestAStoreIsAPlainListOfRows = StoreMachine.TestCase
