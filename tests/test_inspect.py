"""Promise: `fastprio inspect` shows a saved store truly, writes what it is asked for and nothing else, and errs in one
line."""

from __future__ import annotations

import csv
import math
import statistics
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_all_policies import NAMES, new, seen_of
from test_cli import hide, only_line

from fastprio import PriorityLoader, ScoreStore, cli
from fastprio._random import Rng
from fastprio.inspect.evidence import EVIDENCE, largest, suspects
from fastprio.inspect.numbers import PERCENTILES, distribution, inspect, of_classes
from fastprio.policies import NoiseGuard, Policy, registered
from fastprio.policies.base import example
from fastprio.testing import made_up

NOTHING_TO_GO_BY = {"given", "group_dro", "odm", "random_subset", "recency", "replay", "repb", "uniform"}


def trained(name, size=60, epochs=3, unseen=5, **arguments):
    """A store, and what each example was seen with, in order: (epoch, loss, observations), after some batches."""
    of = registered()[name]
    store = ScoreStore(size, of(**{**of.example, **arguments}), epochs=10)
    rng = np.random.default_rng(7)
    visits = {i: [] for i in range(size)}
    for epoch in range(epochs):
        store.begin_epoch(epoch)
        for at in np.split(rng.permutation(size - unseen), [20, 35]):
            losses = rng.exponential(size=len(at)).astype(np.float32)
            others = made_up(store.policy, len(at), rng)
            store.update(at, losses, **others)
            for j, i in enumerate(at.tolist()):
                visits[i].append((epoch, float(losses[j]), {k: float(v[j]) for k, v in others.items()}))
    return store, visits


@pytest.fixture
def saved(tmp_path):
    """The file of a store in a folder of its own."""
    store, _ = trained("loss")
    store.save(tmp_path / "run.fastprio")
    return tmp_path / "run.fastprio"


@pytest.fixture
def undrawn(monkeypatch):
    """For what does not concern the picture, which takes longer to draw than all the rest."""
    monkeypatch.setattr("fastprio.inspect.picture.draw", lambda path, title, found: None)


def shown(capsys, *words):
    """What the command prints, which must succeed."""
    assert cli.main(["inspect", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    """The one line of a command that must fail."""
    assert cli.main(["inspect", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = only_line(captured.err)
    assert line.startswith("fastprio inspect: ")
    return line


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# Numbers.


@pytest.mark.parametrize(
    "values",
    [
        [3.0],
        [0.0, 0.0, 0.0],
        [1.0, -2.0, 0.5, 0.25],
        [10.0**k for k in range(-6, 4)] + [0.0, 0.0],
        list(np.random.default_rng(1).lognormal(0, 3, 1000)),
        list(np.random.default_rng(2).integers(0, 9, 500).astype(float)),
        list(np.random.default_rng(3).normal(size=501)),
    ],
)
def test_a_distribution_is_that_of_the_sorted_values(values):
    values = np.array(values, np.float32)
    of = distribution("x", np.append(values, [np.float32("nan"), np.float32("inf")]))
    ordered = sorted(values.tolist())
    assert (of.examples, of.not_finite, of.zeros) == (len(values), 2, ordered.count(0.0))
    for p in PERCENTILES:
        assert of.percentiles[p] == next(v for k, v in enumerate(ordered, 1) if 100 * k >= p * len(ordered))
    shown = [v for v in ordered if v > 0] if of.log else ordered
    assert sum(of.counts) == len(shown)
    for k, count in enumerate(of.counts):
        last = k == len(of.counts) - 1
        assert count == sum(of.edges[k] <= v and (v < of.edges[k + 1] or last) for v in shown)
    assert of.edges[0] <= shown[0]
    assert shown[-1] <= of.edges[-1]
    assert of.log == (values.min() >= 0 and values.max() > 100)


def test_whole_numbers_have_a_bin_each_until_they_are_too_many():
    of = distribution("x", np.array([0, 2, 2, 5]))
    assert of.counts == (1, 0, 2, 0, 0, 1)
    assert of.edges == (-0.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5)
    of = distribution("x", np.arange(1000))
    assert len(of.counts) <= 60
    assert len(set(of.counts[:-1])) == 1


def test_no_values_have_no_percentiles():
    of = distribution("x", np.empty(0, np.float32))
    assert (of.examples, of.percentiles, of.counts) == (0, {}, ())


def test_the_largest_come_first_and_ties_by_index():
    score = np.array([1, np.nan, 5, 3, 3, 0, 3, np.nan], np.float32)
    assert [at.tolist() for at, _ in (largest(score, k) for k in (1, 2, 3, 5, 99))] == [
        [2], [2, 3], [2, 3, 4], [2, 3, 4, 6, 0], [2, 3, 4, 6, 0, 5]
    ]  # fmt: skip
    assert [tied for _, tied in (largest(score, k) for k in (1, 2, 3, 4, 99))] == [0, 2, 1, 0, 0]
    rng = np.random.default_rng(0)
    for n in (1, 2, 50):
        score = rng.integers(0, 5, n).astype(np.float32)
        for k in range(1, n + 1):
            at, tied = largest(score, k)
            assert at.tolist() == sorted(range(n), key=lambda i, s=score: (-s[i], i))[:k]
            assert tied == score.tolist().count(score[at[-1]]) - score[at].tolist().count(score[at[-1]])


def test_the_law_of_the_draws_is_that_of_the_priorities():
    store, _ = trained("loss", size=250)
    found, p = inspect(store, 3), [float(x) for x in store.priorities]
    effective = sum(p) ** 2 / sum(x * x for x in p)
    assert found.stats["effective_sample_size"] == pytest.approx(effective, rel=1e-6)
    assert found.stats["tau"] == pytest.approx(math.sqrt(1 + statistics.pvariance(p) / statistics.mean(p) ** 2))
    assert found.stats["top_1pct_share"] == pytest.approx(sum(sorted(p)[-2:]) / sum(p), rel=1e-6)
    assert (found.seen, found.size, found.step, found.epoch) == (245, 250, 9, 2)
    assert found.priorities.zeros == 5
    assert found.columns[0].examples == 245
    assert found.by_tree


def test_ages_count_the_updates_since_an_example_was_scored():
    store, _ = trained("loss")
    last = {}
    rng = np.random.default_rng(3)
    for step in range(store.clock.step, store.clock.step + 12):
        at = rng.integers(0, 55, 9)
        store.update(at, np.ones(9))
        last.update(dict.fromkeys(at.tolist(), step))
    at, ages = store.ages()
    known = dict(zip(at.tolist(), ages.tolist(), strict=True))
    assert list(known) == list(range(55))
    assert {i: known[i] for i in last} == {i: store.clock.step - 1 - step for i, step in last.items()}
    assert ages.mean() == pytest.approx(store.stats()["score_age"])
    big = ScoreStore(20000)
    big.update([0, 4, 7, 19996], np.ones(4))
    assert [array.tolist() for array in big.ages()] == [[0, 4, 19996], [0, 0, 0]]


def test_listed_examples_are_counted_by_label():
    labels, at = np.array([3, 1, 3, -2, 1, 1, 9]), np.array([0, 2, 3, 5])
    assert of_classes(labels, at) == [(3, 2, 2), (-2, 1, 1), (1, 1, 3)]


# Whose label may be wrong.


def forgetting(visits):
    counts, never = {}, []
    for i, seen in visits.items():
        right = [o["correct"] for _, _, o in seen]
        counts[i] = sum(a > b for a, b in pairwise(right))
        never += [i] * (1 not in right)
    most = max(counts.values())
    return {i: most + 1 if i in never else counts[i] for i in visits}


def signed_confidence(seen):
    return -seen[-1][2]["confidence"] if seen[-1][2]["correct"] else seen[-1][2]["confidence"]


def smoothed(seen, size):
    average = 1 / size
    for _, loss, _ in seen:
        average = 0.8 * average + 0.2 * loss
    return average


def of_each(score):
    return lambda visits: {i: score(seen) for i, seen in visits.items()}


ORACLES = {
    "loss": ("loss", {}, of_each(lambda seen: seen[-1][1])),
    "infobatch": ("loss", {}, of_each(lambda seen: seen[-1][1])),
    "forgetting": ("forgetting events", {}, forgetting),
    "active_bias": ("1 - mean p(label)", {}, of_each(lambda s: 1 - statistics.mean(o["p_label"] for _, _, o in s))),
    "dyn_unc": (
        "1 - mean recent p(label)", {"after": 5, "keep": 0.5, "window": 2},
        of_each(lambda seen: 1 - statistics.mean(o["p_label"] for _, _, o in seen[-2:])),
    ),
    "kakurenbo": ("confidence in another label", {}, of_each(signed_confidence)),
    "odd": ("mean of the last losses", {}, of_each(lambda seen: statistics.mean(loss for _, loss, _ in seen[-2:]))),
    "ies": ("mean of the last losses", {}, of_each(lambda seen: statistics.mean(loss for _, loss, _ in seen[-6:]))),
    "mr": ("cumulative loss", {"update": "train"}, of_each(lambda seen: sum(loss for _, loss, _ in seen))),
    "evolved": ("smoothed loss", {}, of_each(lambda seen: smoothed(seen, 60))),
}  # fmt: skip


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("epochs", [1, 4])
def test_the_score_is_what_plain_python_makes_of_the_visits(name, epochs):
    said, arguments, oracle = ORACLES[name]
    store, visits = trained(name, epochs=epochs, **arguments)
    found = suspects(store, 10)
    assert found.evidence.name == said
    expected = oracle({i: seen for i, seen in visits.items() if seen})
    known = np.flatnonzero(~np.isnan(found.scores)).tolist()
    assert known == list(expected) == list(range(55))
    assert found.scores[known].tolist() == pytest.approx(list(expected.values()), rel=1e-5, abs=1e-6)
    assert found.at.tolist() == sorted(known, key=lambda i: (-found.scores[i], i))[:10]
    assert len(found.why) == 10
    assert all(found.why)


def test_what_was_forgotten_first_in_the_second_split_comes_first():
    store = ScoreStore(40, registered()["ssft"](first_epochs=2))
    loader = PriorityLoader(range(40), 8, policy=store, seed=1)
    rng, right = np.random.default_rng(0), {}
    for epoch in range(5):
        for batch in loader:
            loader.step(batch.float(), correct=np.ones(len(batch)))
        if epoch == 2:
            assert suspects(store, 3) is None  # the second split has not been evaluated
        half = np.flatnonzero(np.unpackbits(store.column("half"), count=40, bitorder="little"))
        answers = rng.integers(0, 2, len(half))
        store.update(half, np.ones(len(half)), origin="score", correct=answers)
        right[epoch] = dict(zip(half.tolist(), answers.tolist(), strict=True))
    found = suspects(store, 40)
    last = {i: max([e - 1 for e in (2, 3, 4) if right[e][i]], default=0) for i in right[4]}
    assert found.evidence.name == "epochs forgotten in the second split"
    assert {i: found.scores[i] for i in found.at.tolist()} == {i: 3 - e for i, e in last.items()}
    assert sorted(found.at.tolist()) == sorted(last)
    for i, why in zip(found.at.tolist(), found.why, strict=True):
        assert why.startswith(f"last right in epoch {last[i]} of" if last[i] else "never right in the second split")
        wrong = max([e + 1 for e in (0, 1) if not right[e][i]], default=0)
        assert why.endswith(f"last wrong in epoch {wrong} of the first" if wrong else "never wrong in the first")


def test_what_is_learnt_late_or_never_comes_first():
    store = ScoreStore(6, registered()["late_stopping"](keep=0.5, warm_up=-1))
    store.column("first_learned")[:] = [1, 4, 0, 2, 0, 0]
    store.column("removed")[:] = 0b10000
    store.update(np.arange(5), np.ones(5), correct=np.ones(5))
    found = suspects(store, 6)
    assert found.at.tolist() == [4, 2, 1, 3, 0]
    assert found.scores.tolist()[:5] == [1, 4, 5, 2, 6]
    assert [why.split()[0] for why in found.why] == ["removed:", "not", "learnt", "learnt", "learnt"]


def test_scores_of_other_models_come_from_their_passes():
    for name, said in (("el2n", "mean distance of prediction and label"), ("flow", "loss under the reference model")):
        store = ScoreStore(8, registered()[name](**registered()[name].example))
        values = np.array([0.5, 0.25, 1.25, 0.75], np.float32)
        others = {"error_norm": values} if name == "el2n" else {}
        store.update([1, 3, 5, 7], values, origin="reference", **others)
        found = suspects(store, 2)
        assert found.evidence.name == said
        assert found.at.tolist() == [5, 7]
        assert np.isnan(found.scores[::2]).all()
        assert inspect(store, 2).columns[0].examples == 4


def test_losses_of_several_epochs_are_averaged_where_they_are_known():
    store, visits = trained("align", epochs=1, window=4)
    for slot in range(2):  # two more epochs, of which each example was in one
        at = np.arange(slot, 60, 2)
        store.column("losses")[at, slot + 1] = 10
        store.column("known")[at] |= 2 << slot
    found = suspects(store, 5)
    assert found.evidence.name == "mean loss of the last epochs"
    for i, seen in visits.items():
        losses = [10.0, *(loss for _, loss, _ in seen)]
        assert found.scores[i] == pytest.approx(statistics.mean(losses))


class LossAlone(Policy):
    """A priority is the last loss, its power, or what is left of ten."""

    def __init__(self, kind="same"):
        self.kind = kind

    def observe(self, columns, indices, obs, clock, rng):
        return {"same": obs.loss, "less": np.maximum(10 - obs.loss, 0), "flat": np.ones_like(obs.loss)}[self.kind]


@pytest.mark.parametrize("kind", ["same", "less", "flat"])
def test_priorities_count_only_where_they_grow_with_the_loss(kind):
    store = ScoreStore(30, LossAlone(kind))
    store.update(np.arange(20), np.arange(20) * 0.4)
    found = suspects(store, 3)
    if kind == "same":
        assert found.evidence.name == "priority"
        assert found.at.tolist() == [19, 18, 17]
        assert np.isnan(found.scores[20:]).all()
    else:
        assert found is None


def test_better_evidence_is_taken_before_weaker():
    names = [evidence.name for evidence in EVIDENCE]
    assert names.index("confidence in another label") < names.index("loss") < names.index("priority")
    assert len(set(names)) == len(names)
    store = ScoreStore(9, "loss", columns={"confidence": "float32", "correct": "bit"})
    assert suspects(store, 1) is None  # nothing has been seen
    store.update([4], [2.0])
    assert suspects(store, 1).evidence.name == "confidence in another label"
    other = ScoreStore(9, "loss", columns={"losses": "float32", "count": "uint8"})  # of one's own, and no ring
    other.update([4], [2.0])
    assert suspects(other, 1).evidence.name == "loss"


# The command.


@pytest.mark.parametrize("name", NAMES)
def test_every_policys_store_is_shown_and_written(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    store = new(name, 43)
    for epoch in range(8):  # so many until all keep something
        store.begin_epoch(epoch)
        store.policy.plan(store, store.clock, Rng(1, epoch, 0, "plan"))
        for origin in ("train", "score"):
            at = np.random.default_rng(epoch).permutation(40)
            losses = np.random.default_rng(epoch).exponential(size=40)
            store.update(at, losses, origin=origin, **seen_of(store.policy, 40, epoch))
    store.save(tmp_path / "store")
    np.save(tmp_path / "labels.npy", np.arange(43) % 4)
    text = shown(capsys, tmp_path / "store", "--labels", tmp_path / "labels.npy", "--csv", tmp_path / "rows.csv")
    assert (name in NOTHING_TO_GO_BY) == ("There is nothing to go by" in text)
    assert (name not in NOTHING_TO_GO_BY) == ("Those listed, by label" in text)
    body = text[: text.index("Written: ")].replace(str(tmp_path), "")
    assert max(map(len, body.splitlines())) <= 80
    assert "\x1b" not in text
    assert " 40 (93 %); never: 3" in text
    assert (tmp_path / "store.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.npy", "rows.csv", "store", "store.png"]
    rows = rows_of(tmp_path / "rows.csv")
    for column, kind in store.types.items():
        if isinstance(kind, str) and kind != "bit":
            read = np.array([row[column] for row in rows]).astype(kind)
            assert read.tobytes() == store.column(column).tobytes()


@pytest.mark.usefixtures("undrawn")
def test_the_csv_file_has_every_example_and_reads_back_to_the_bit(tmp_path, capsys):
    store, _ = trained("kakurenbo", epochs=2)
    store.save(tmp_path / "store")
    labels = np.random.default_rng(0).integers(-3, 3, 60)
    np.savetxt(tmp_path / "labels.txt", labels, "%d")
    shown(capsys, tmp_path / "store", "--csv", tmp_path / "rows.csv", "--labels", tmp_path / "labels.txt")
    rows = rows_of(tmp_path / "rows.csv")
    assert list(rows[0]) == ["index", "seen", "priority", "updates_since_scored", "loss", "correct", "confidence",
                             "label", "mislabel_score"]  # fmt: skip
    assert [int(row["index"]) for row in rows] == list(range(60))
    assert [row["seen"] for row in rows] == ["1"] * 55 + ["0"] * 5
    assert [int(row["label"]) for row in rows] == labels.tolist()
    assert [np.float32(row["loss"]) for row in rows] == store.column("loss").tolist()
    correct = np.unpackbits(store.column("correct"), count=60, bitorder="little")
    assert [int(row["correct"]) for row in rows] == correct.tolist()
    assert [row["mislabel_score"] for row in rows[55:]] == [""] * 5
    for row in rows[:55]:
        sign = -1 if row["correct"] == "1" else 1
        assert float(row["mislabel_score"]) == sign * float(row["confidence"])
    at, ages = store.ages()
    assert {int(r["index"]): int(r["updates_since_scored"]) for r in rows if r["updates_since_scored"]} == dict(
        zip(at.tolist(), ages.tolist(), strict=True)
    )


@pytest.mark.usefixtures("undrawn")
def test_long_csv_files_are_written_in_pieces_that_join(tmp_path, capsys):
    store = ScoreStore(70001, columns={"priority": "float64", "wide": ("float32", 2)})
    store.column("priority")[:] = np.arange(70001)
    store.update(np.arange(0, 70001, 3), np.arange(0, 70001, 3))
    store.save(tmp_path / "store")
    shown(capsys, tmp_path / "store", "--csv", tmp_path / "rows.csv")
    rows = rows_of(tmp_path / "rows.csv")
    assert "wide" not in rows[0]
    assert [int(row["index"]) for row in rows] == [float(row["column.priority"]) for row in rows] == [*range(70001)]
    assert [float(row["loss"]) for row in rows if row["seen"] == "1"] == [*range(0, 70001, 3)]
    aged = [i for i, row in enumerate(rows) if row["updates_since_scored"]]
    assert aged == [i for i in range(0, 70001, 16) if i % 3 == 0]


@pytest.mark.usefixtures("undrawn")
def test_the_tables_tell_what_the_store_is(saved, capsys):
    text = shown(capsys, saved, "--top", 4)
    store = ScoreStore.load(saved)
    for words in ("LossPower(alpha=0.6", "60;", "epoch 2 of 10", "9 updates", "55 (92 %); never: 5",
                  f"{saved.stat().st_size:,} bytes", "kept with it  nothing", "the 4 largest by loss"):  # fmt: skip
        assert words in text
    best = store.column("loss").argmax()
    line = next(line for line in text.splitlines() if line.split()[:1] == [str(best)])
    assert f"loss {store.column('loss')[best]:.3g}" in line
    assert f"Written: {saved.parent / 'run.png'}\n" in text


@pytest.mark.usefixtures("undrawn")
def test_a_samplers_state_that_was_kept_is_told(tmp_path, capsys):
    loader = PriorityLoader(range(30), 8)
    for batch in loader:
        loader.step(batch.float())
        break
    loader.store.save(tmp_path / "store")
    kept = ScoreStore.load(tmp_path / "store").kept[0]
    size = sum(array.nbytes for array in kept.values())
    assert f"a sampler's state, {size:,} bytes" in shown(capsys, tmp_path / "store")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("losses", "says"),
    [
        (None, "undecided: that is when the epoch after its probe begins"),
        ([0.01] * 19 + [2.0], "clean: tau was 4.085, at least 1.7"),
        ([0.5] * 10 + [0.9] * 10, "unsafe: tau was 1.040, below 1.7; epochs are uniform examples 20;"),
        ([0.5] * 16 + [1.9] * 4, "and but for 5 % of them without 4 examples (20 %), whose smoothed"),
    ],
)
def test_what_a_guard_has_decided_is_told_and_where_it_saw_nothing_too(losses, says, tmp_path, capsys):
    loader = PriorityLoader(range(20), 5, policy=NoiseGuard("uniform", chance=1.0), epochs=3)
    for _ in range(0 if losses is None else 2):
        for batch in loader:
            loader.step(torch.tensor(losses)[batch])
        loader.score(torch.nn.Identity(), lambda model, batch: torch.tensor(losses)[batch])
    loader.store.save(tmp_path / "store")
    text = " ".join(shown(capsys, tmp_path / "store").split())
    assert says in text
    assert ("no sign of wrong labels" in text) == says.startswith(("clean", "unsafe"))
    assert "\nguard " not in shown(capsys, saved_of("loss", tmp_path))


def saved_of(policy, folder):
    store, _ = trained(policy)
    store.save(folder / policy)
    return folder / policy


@pytest.mark.usefixtures("undrawn")
def test_the_labels_of_those_listed_are_counted(saved, capsys):
    labels = np.where(np.arange(60) % 2, 7, 1000)
    np.save(saved.parent / "labels.npy", labels)
    text = shown(capsys, saved, "--labels", saved.parent / "labels.npy", "--top", 9)
    at = suspects(ScoreStore.load(saved), 9).at
    odd = int((at % 2).sum())
    counts = [line.split() for line in text[text.index("Those listed, by label") :].splitlines()[2:4]]
    assert sorted(counts) == [["1000", str(9 - odd), "30"], ["7", str(odd), "30"]]
    for i in at:
        assert any(line.split()[:3:2] == [str(i), str(labels[i])] for line in text.splitlines())


def test_the_picture_goes_where_it_is_asked_and_nowhere_else(saved, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    before = saved.read_bytes()
    shown(capsys, saved, "--png", tmp_path / "other" / "picture.dat")
    assert (tmp_path / "other" / "picture.dat").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["other", "picture.dat", "run.fastprio"]
    assert saved.read_bytes() == before


@pytest.mark.parametrize("policy", ["loss", "uniform"])
def test_a_store_that_has_seen_nothing_is_shown(policy, tmp_path, capsys):
    ScoreStore(1, policy).save(tmp_path / "store")
    text = shown(capsys, tmp_path / "store")
    for words in (
        "0 (0 %); never: 1",
        "nothing has been scored",
        "There is nothing to go by: nothing has been scored yet",
        "no priority has been set",
    ):
        assert words in text


@pytest.mark.parametrize("policy", ["loss", "infobatch", "uniform", "bls"])
@pytest.mark.parametrize("losses", [[1e16] * 3, [3e38] * 3, [1e20], [0, 1e-30, 1, 1e30, 3e38], [2.0**53, 2.0**53]])
def test_values_of_any_size_are_shown(losses, policy, tmp_path, capsys):
    store = ScoreStore(len(losses), example(policy), epochs=10)
    store.update(range(len(losses)), losses, **made_up(store.policy, len(losses), np.random.default_rng(1)))
    store.save(tmp_path / "store")
    assert cli.main(["inspect", str(tmp_path / "store")]) == 0
    assert (tmp_path / "store.png").exists()
    capsys.readouterr()


def test_marks_that_mean_something_to_rich_or_matplotlib_are_shown_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained("loss")[0].save("[red]$x_{$.fp")
    assert shown(capsys, "[red]$x_{$.fp").count("[red]$x_{$.fp") == 1


# Policies of one's own.

OWN = '''
from fastprio.policies import Policy

class Own(Policy):
    """Of a test."""
    columns = {"loss": "float32"}
    def __init__(self, ceiling=5.0):
        self.ceiling = ceiling
    def observe(self, columns, indices, obs, clock, rng):
        columns["loss"][indices] = obs.loss
        return obs.loss.clip(0, self.ceiling)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A store of a policy whose class stands in own_of_the_test.py of the current folder, and has no name."""
    (tmp_path / "own_of_the_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    module = __import__("own_of_the_test")
    store = ScoreStore(12, module.Own(ceiling=2.5))
    store.update(np.arange(12), np.arange(12))
    store.save("store")
    monkeypatch.setattr(sys, "path", sys.path[1:])
    monkeypatch.delitem(sys.modules, "own_of_the_test")
    return "store"


@pytest.mark.usefixtures("undrawn")
def test_a_class_without_a_name_is_given_as_module_and_class(own, capsys, monkeypatch):
    text = shown(capsys, own, "--policy", "own_of_the_test:Own")
    assert "Own(ceiling=2.5)" in text  # as it was saved, not by default
    monkeypatch.delitem(sys.modules, "own_of_the_test")


def test_a_class_without_a_name_that_is_not_given_is_refused(own, capsys):
    assert "policy = ''" in refused(capsys, own)
    assert "No module named" in refused(capsys, own, "--policy", "no.such.module:Own")
    assert "store" in refused(capsys, own, "--policy", "infobatch")


# What cannot be done is one line, status 2, and changes nothing.


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--top", "0"], "--top 0: expected at least 1"),
        (["--top", "-3"], "--top -3: expected at least 1"),
        (["--png", "no/folder/x.png"], "--png no/folder/x.png: there is no folder no/folder"),
        (["--csv", "no/folder/x.csv"], "--csv no/folder/x.csv: there is no folder no/folder"),
        (["--png", "folder"], "--png folder: cannot be written: Is a directory"),
        (["--png", "run.fastprio"], "--png run.fastprio: would overwrite another file of this command"),
        (["--csv", "./run.png"], "--csv run.png: would overwrite another file of this command"),
        (["--labels", "labels.npy", "--csv", "labels.npy"], "--csv labels.npy: would overwrite another file"),
        (["--labels", "labels.npy"], "labels.npy: expected 60 integers, got int64 of shape [59]"),
        (["--labels", "absent.npy"], "absent.npy: cannot be read as labels"),
        (["--labels", "words.txt"], "words.txt: cannot be read as labels: could not convert string"),
        (["--labels", "empty.txt"], "empty.txt: expected 60 integers, got int64 of shape [0]"),
        (["--labels", "empty.npy"], "empty.npy: cannot be read as labels"),
        (["--labels", "large.npy"], "large.npy: label 1 is 9223372036854775808: expected an int64"),
        (["--policy", "nonsense"], "--policy nonsense: policy = 'nonsense': expected"),
        (["--policy", "own:Own"], "--policy own:Own: policy = 'own:Own': No module named 'own'"),
    ],
)
def test_misuse_is_one_line_and_writes_nothing(saved, words, says, capsys, monkeypatch):
    folder = saved.parent
    monkeypatch.chdir(folder)
    (folder / "folder").mkdir()
    np.save("labels.npy", np.zeros(59, np.int64))
    np.save("large.npy", np.array([0, 1 << 63] + [0] * 58, np.uint64))
    for name, content in (("words.txt", "cat\n" * 60), ("empty.txt", ""), ("empty.npy", "")):
        (folder / name).write_text(content)
    before = {path: path.is_file() and path.read_bytes() for path in folder.iterdir()}
    assert says in refused(capsys, "run.fastprio", *words)
    assert {path: path.is_file() and path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda whole: whole[:-1], "not a fastprio file, or not a whole one"),
        (lambda whole: whole[:5], "the header is cut short"),
        (lambda whole: b"", "the header is cut short"),
        (lambda whole: whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:], "checksum"),
        (lambda whole: b"index,loss\n1,2\n" * 20, "not a fastprio file, or not a whole one"),
    ],
)
def test_a_file_that_is_no_whole_store_is_refused(saved, damage, says, capsys):
    saved.write_bytes(damage(saved.read_bytes()))
    line = refused(capsys, saved)
    assert str(saved) in line
    assert says in line
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_store_of_a_newer_format_is_refused(saved, capsys, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr("fastprio.snapshot.FORMAT", 2)
        store = ScoreStore.load(saved)
        store.save(saved)
    line = refused(capsys, saved)
    assert "format 2: this version of fastprio reads up to 1; upgrade it" in line
    assert str(saved) in line


def test_a_file_that_is_absent_or_a_folder_is_refused(tmp_path, capsys, monkeypatch):
    assert "absent: cannot be read: No such file" in refused(capsys, tmp_path / "absent")
    monkeypatch.chdir(tmp_path)
    assert ".: cannot be read: Is a directory" in refused(capsys, ".")
    assert list(tmp_path.iterdir()) == []


def test_half_a_csv_file_does_not_stay(saved, capsys, monkeypatch):
    target = saved.parent / "rows.csv"

    def full(self, rows):
        raise OSError(28, "No space left on device")

    class Writer:
        def __init__(self, file, **options):
            self.file = file

        def writerow(self, row):
            self.file.write("index")

        writerows = full

    monkeypatch.setattr(csv, "writer", Writer)
    assert "--csv" in (line := refused(capsys, saved, "--csv", target))
    assert line.endswith("cannot be written: No space left on device")
    assert not target.exists()


@pytest.mark.parametrize("package", ["rich", "matplotlib"])
def test_a_missing_package_is_one_line_that_says_what_to_install(saved, package, capsys, monkeypatch):
    hide(monkeypatch, package)
    assert cli.main(["inspect", str(saved)]) == 2
    line = only_line(capsys.readouterr().err)
    assert line == f"fastprio inspect: {package} is missing: pip install 'fastprio[study]'"
    assert not (saved.parent / "run.png").exists()


def test_an_interrupt_ends_with_its_status(saved, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(ScoreStore, "load", interrupted)
    assert cli.main(["inspect", str(saved)]) == 130
