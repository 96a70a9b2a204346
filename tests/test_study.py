"""Promise: every run of a study trains on what it says, as long as it says, and counts and times all that it does."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import generator

from fastprio.study import training, watch
from fastprio.study.corruptions import corrupt
from fastprio.study.data import Data, Split, load
from fastprio.study.examples import Examples, part_of, whole
from fastprio.study.files import StudyError
from fastprio.study.methods import BACKPROPS, METHODS, Setting, find
from fastprio.study.protocol import Cell, Protocol
from fastprio.study.training import PARTS, Run, _detection
from fastprio.study.watch import Watch

TINY = Protocol("tiny", "digits", "small-cnn-2", 120, 40, epochs=3, batch_size=16, lr=0.05, evaluations=4)


def like(**changes):
    return dataclasses.replace(TINY, **changes)


def cell(method="uniform", kind="labels", level=0.5, budget=0.5, seed=0):
    """A run; those that know no budget have all of it."""
    whole = method in ("uniform", "InfoBatch", "IES", "guarded InfoBatch")
    return Cell(kind, level, method, 1.0 if whole else budget, seed)


def finished(protocol, cell):
    run = Run(protocol, cell)
    for _ in run.steps():
        pass
    return run


# The protocol.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"warm_up": 0.0, "drops": ()}, {0: 1, 0.5: 1, 1: 1}),
        ({"warm_up": 0.5, "drops": ()}, {0: 0, 0.125: 0.25, 0.25: 0.5, 0.5: 1, 0.75: 1, 1: 1}),
        ({"warm_up": 0.0, "drops": (0.5, 0.75)}, {0: 1, 0.4999: 1, 0.5: 0.25, 0.74: 0.25, 0.75: 0.0625, 1: 0.0625}),
        ({"warm_up": 0.5, "drops": (0.25,)}, {0.125: 0.25, 0.25: 0.125, 0.5: 0.25}),
    ],
)
def test_the_learning_rate_rises_by_a_line_and_falls_by_steps(settings, expected):
    protocol = like(lr=2.0, factor=0.25, **settings)
    assert {at: protocol.learning_rate(at) for at in expected} == {at: 2.0 * share for at, share in expected.items()}


def test_each_step_has_the_learning_rate_of_its_progress_times_the_cells_scale():
    protocol = like(warm_up=0.25, drops=(0.5,), factor=0.5)
    run, rates, progress = Run(protocol, dataclasses.replace(cell(), lr_scale=3.0)), [], []
    for _ in run.steps():
        rates.append(run.optimizer.param_groups[0]["lr"])
        progress.append(run.backprops / 360)  # with the step
    expected = [0.15 * min(1, at / 0.25) * (0.5 if at >= 0.5 else 1) for at in progress]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert len(rates) == 23  # of three epochs of seven steps and a half


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(("examples", bad) for bad in (0, -1)),
        *((name, -1) for name in ("validation", "shift")),
        ("epochs", 0),
        ("batch_size", 0),
        ("evaluations", 1),
        ("probe", 0),
        ("probe", 10**6),
        *((name, bad) for name in ("lr", "factor", "ies_threshold") for bad in (0.0, -1.0, math.inf, math.nan)),
        *(("weight_decay", bad) for bad in (-1, math.inf, math.nan)),
        *(("warm_up", bad) for bad in (-0.1, 1.1, math.nan)),
        *(("momentum", bad) for bad in (-0.1, 0.0, 1.0, math.nan)),
        *(("drops", bad) for bad in ((-0.1,), (0.5, 1.1), (math.nan,))),
        ("evaluate", "training"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(name, bad):
    TINY.check()
    with pytest.raises(StudyError, match=rf"^{name}( = |: )"):
        like(**{name: bad}).check()


def test_an_evaluation_on_the_validation_set_needs_one():
    like(evaluate="validation").check()
    with pytest.raises(StudyError, match=r"^evaluate = 'validation': expected validation >= 1$"):
        like(evaluate="validation", validation=0).check()


# The data.


@pytest.fixture
def numbered(monkeypatch):
    """A data set in which every image has its number in a corner."""

    def split(n, begin):
        images = torch.arange(begin, begin + n)[:, None, None, None] + torch.arange(64).reshape(8, 8) / 100
        return Split(images, torch.arange(n) % 10)

    data = Data("numbered", split(300, 0), split(50, 1000), 10)
    monkeypatch.setattr("fastprio.study.examples.whole", lambda source: data)
    return data


def numbers(split):
    return split.images[:, 0, 0, 0].long().tolist()


def test_what_a_seed_trains_on_and_holds_out_is_chosen_without_overlap(numbered):
    before = [split.images.clone() for split in (numbered.train, numbered.test)]
    chosen = []
    for seed in range(5):
        part = part_of(like(evaluate="validation"), cell(kind="clean", level=0.0, seed=seed))
        train, held_out = numbers(part.train), numbers(part.held_out)
        assert len(set(train)) == 120
        assert len(set(held_out)) == 40
        assert not set(train) & set(held_out)
        assert set(train + held_out) <= set(range(300))
        assert part.train.labels.tolist() == [i % 10 for i in train]
        assert part.held_out.labels.tolist() == [i % 10 for i in held_out]
        of_test = part_of(TINY, cell(kind="clean", level=0.0, seed=seed))
        assert numbers(of_test.train) == train
        assert numbers(of_test.held_out) == numbers(numbered.test)
        chosen.append(frozenset(train))
    assert len(set(chosen)) == 5
    for kind in ("labels", "gauss", "shuffle"):
        part_of(TINY, cell(kind=kind))
    assert all(torch.equal(a, b.images) for a, b in zip(before, (numbered.train, numbered.test), strict=True))
    assert numbered.train.labels.tolist() == [i % 10 for i in range(300)]


@pytest.mark.parametrize("kind", ["clean", "labels", "gauss", "rare"])
def test_the_data_are_those_of_the_seed_corrupted_and_held_out_ones_are_clean(numbered, kind):
    one = cell(kind=kind, level=0.5, seed=3)
    clean = part_of(like(evaluate="validation"), cell(kind="clean", level=0.0, seed=3))
    part = part_of(like(evaluate="validation"), one)
    made = corrupt(clean.train, 10, kind, 0.5, 3)
    assert torch.equal(part.train.images, made.split.images)
    assert torch.equal(part.train.labels, made.split.labels)
    assert part.altered.tolist() == made.altered.tolist()
    assert (part.altered.sum() > 20) == (kind in ("labels", "gauss"))
    assert torch.equal(part.held_out.images, clean.held_out.images)
    assert torch.equal(part.held_out.labels, clean.held_out.labels)


def test_labels_of_a_file_are_those_of_all_training_examples_in_their_order(numbered, tmp_path):
    given = (np.arange(300) * 7 + np.arange(300) // 150) % 10
    np.save(tmp_path / "labels.npy", given)
    part = part_of(TINY, Cell(f"file:{tmp_path / 'labels.npy'}", 1.0, "uniform", 1.0, 0))
    at = numbers(part.train)
    assert part.train.labels.tolist() == given[at].tolist()
    assert part.altered.tolist() == [given[i] != i % 10 for i in at]
    np.save(tmp_path / "few.npy", given[:120])
    with pytest.raises(StudyError, match=r"few.npy: expected 300 integers"):
        part_of(TINY, Cell(f"file:{tmp_path / 'few.npy'}", 1.0, "uniform", 1.0, 0))


def first_epoch(run):
    """The examples that its loader offers, in order."""
    offered = []
    for at, _, _ in run.loader:
        offered += at.tolist()
        run.loader.skip()
    return offered


def test_all_methods_of_a_seed_have_the_same_data_first_weights_and_order():
    runs = {name: Run(TINY, cell(name, seed=5)) for name in METHODS}
    first = runs["uniform"]
    orders = {}
    for name, run in runs.items():
        for key, value in first.model.state_dict().items():
            assert torch.equal(run.model.state_dict()[key], value)
        if name != "oracle SB":
            assert torch.equal(run.examples.split.images, first.examples.split.images)
            assert torch.equal(run.examples.split.labels, first.examples.split.labels)
        orders[name] = first_epoch(run)
        n = {"random subset": 60, "oracle SB": len(run.examples)}.get(name, 120)
        batch = 32 if METHODS[name].pooled else 16  # half of a pool is a batch
        assert len(orders[name]) == n // batch * batch
        assert len(set(orders[name])) == len(orders[name])
        if name not in ("random subset", "oracle SB"):
            assert orders[name] == orders["uniform"][: len(orders[name])]
    other = Run(TINY, cell(seed=6))
    assert not torch.equal(next(other.model.parameters()), next(first.model.parameters()))
    assert first_epoch(other) != orders["uniform"]


def test_an_oracle_has_what_was_not_altered():
    part, run = part_of(TINY, cell("oracle SB")), Run(TINY, cell("oracle SB"))
    kept = np.flatnonzero(~part.altered)
    assert torch.equal(run.examples.split.images, part.train.images[torch.from_numpy(kept)])
    assert run.examples.split.labels.tolist() == part.train.labels[torch.from_numpy(kept)].tolist()
    assert run.budget == 180  # of all


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": 1400}, r"^examples \+ validation = 1440: digits has 1437 training examples$"),
        ({"model": "large"}, r"^model = 'large': expected one of .* \(images of digits are \[1, 8, 8\]\)$"),
        ({"device": "abacus"}, r"^device = 'abacus': "),
        ({"data": "nowhere"}, r"^nowhere: no such folder"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, message):
    with pytest.raises(StudyError, match=message) as error:
        Run(like(**changes), cell())
    assert "\n" not in str(error.value)


def test_an_unknown_method_is_refused_with_those_that_there_are():
    with pytest.raises(StudyError, match=r"^method = 'magic': expected one of uniform, .*, oracle SB$"):
        find("magic")


def moved(image, down, right, black):
    """An image [C, H, W] moved by so many pixels, what comes in black: pixel by pixel."""
    _, height, width = image.shape
    out = black[:, None, None].expand_as(image).clone()
    for y, x in itertools.product(range(height), range(width)):
        if 0 <= y - down < height and 0 <= x - right < width:
            out[:, y, x] = image[:, y - down, x - right]
    return out


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_every_image_is_a_shifted_and_mirrored_original_and_nothing_else(shift, flip):
    rng = generator(shift)
    images = torch.from_numpy(rng.normal(size=(6, 2, 5, 5))).float()
    original, black = images.clone(), torch.tensor([-2.5, 0.25])
    places = range(-shift, shift + 1)
    all_of = [
        {
            (down, right, mirrored): (lambda i: i.flip(-1) if mirrored else i)(moved(image, down, right, black))
            for down, right, mirrored in itertools.product(places, places, (False, True)[: 1 + flip])
        }
        for image in original
    ]
    examples = Examples(Split(images, torch.arange(6)), black, shift, flip, 3, Watch())
    met = set()
    for epoch in range(60):
        examples.begin(epoch)
        at = rng.integers(0, 6, 8).tolist()
        indices, batch, labels = examples.__getitems__(at)
        assert indices.tolist() == labels.tolist() == at
        for i, image in zip(at, batch, strict=True):
            how = [key for key, each in all_of[i].items() if torch.equal(each, image)]
            assert len(how) == 1
            met.add(how[0])
    assert met == set(all_of[0])  # every place comes
    assert torch.equal(images, original)
    assert examples.offered == 8  # of this epoch
    assert len(examples) == 6


def test_in_an_epoch_of_a_seed_an_example_is_moved_in_one_way_whoever_asks_for_it():
    split = Split(torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(20))

    def batches(seed):
        examples, found = Examples(split, torch.zeros(1), 2, True, seed, Watch()), []
        for epoch in range(3):
            examples.begin(epoch)
            found.append(examples.__getitems__(list(range(20)))[1])
            assert torch.equal(examples.__getitems__([7, 3, 7])[1], found[-1][[7, 3, 7]])
        return torch.stack(found)

    assert torch.equal(batches(1), batches(1))
    assert not torch.equal(batches(1), batches(2))
    assert not torch.equal(batches(1)[0], batches(1)[1])


@pytest.mark.parametrize("method", ["uniform", "oracle SB"])
@pytest.mark.parametrize("kind", ["clean", "labels", "shuffle", "gauss", "rare"])
def test_the_border_of_a_moved_image_is_black_whatever_was_done_to_the_images(kind, method):
    black = float(load("digits").train.images.min())
    run = Run(like(shift=2), cell(method, kind=kind))
    images, borders = run.examples.split.images, []
    for epoch in range(8):
        run.examples.begin(epoch)
        _, moved, _ = run.examples.__getitems__(list(range(len(run.examples))))
        right = [i for i in range(len(moved)) if torch.equal(moved[i, :, :-2, :-2], images[i, :, 2:, 2:])]
        borders += [moved[i, :, -2:] for i in right] + [moved[i, :, :, -2:].mT for i in right]
    assert len(borders) > 8
    assert all((border == black).all() for border in borders)


# The run.


class Counted:
    """A run whose forward passes, batches and steps are counted from outside."""

    def __init__(self, protocol, one):
        self.run, self.rows, self.trained, self.curve, self.progress = Run(protocol, one), {}, [], [], []
        self.sizes, self.epochs = [], []
        self.run.model.register_forward_pre_hook(self.forward)
        step = self.run._step

        def stepped(at, images, labels):
            self.trained += at.tolist()
            self.sizes.append(len(at))
            self.epochs.append(self.run.epoch)
            self.offered = self.run.examples.offered
            step(at, images, labels)

        self.run._step = stepped
        for _ in self.run.steps():
            self.progress.append(self.run.progress)
            self.curve.append(len(self.run.curve))

    def forward(self, model, inputs):
        kind = (model.training, torch.is_grad_enabled())
        self.rows[kind] = self.rows.get(kind, 0) + len(inputs[0])


@pytest.mark.parametrize("evaluate", ["test", "validation"])
@pytest.mark.parametrize(
    ("method", "doubtful"),
    [*((name, False) for name in METHODS), *((name, True) for name in METHODS if name.startswith("guarded"))],
)
def test_each_method_trains_to_its_end_and_its_counts_are_right(method, doubtful, evaluate, monkeypatch):
    if doubtful:  # a guess is thought so good that the model is clearly worse
        monkeypatch.setattr(Setting, "chance", 1.0)
    protocol, one = like(evaluate=evaluate), cell(method)
    counted = Counted(protocol, one)
    run, result = counted.run, counted.run.result()
    held_out = len(run.held_out)
    assert held_out == (360 if evaluate == "test" else 40)
    # Its end.
    assert result["backprops"] == len(counted.trained)
    if METHODS[method].ends == BACKPROPS:
        budget = round(one.budget * 120 * 3)
        assert run.budget == budget
        assert budget <= result["backprops"] < budget + 16
    else:
        assert result["epochs"] == 3
    assert set(counted.sizes) == {16}
    if method == "random subset":
        assert result["backprops"] == 3 * 48  # of 60
    if method == "IES":
        assert result["backprops"] == 3 * 112  # of 120: none of so few stops so early
    if method == "VR":
        assert result["backprops"] == 3 * 96  # three pools of 32, each as even as to be trained on whole
    # What was forwarded.
    assert counted.rows.pop((True, True)) == result["backprops"]
    assert counted.rows.pop((False, False)) == result["scored"] + protocol.evaluations * held_out
    assert counted.rows == {}
    assert (result["scored"] > 0) == ("SB" in method or "guarded" in method)
    # What was altered, by another comparison.
    clean = part_of(protocol, cell(kind="clean", level=0.0)).train.labels
    altered = (part_of(protocol, one).train.labels != clean).tolist()
    of_altered = 0 if method == "oracle SB" else sum(altered[i] for i in counted.trained)
    assert result["altered_share"] == of_altered / result["backprops"]
    assert (of_altered > 0) == (method != "oracle SB")
    # The evaluations.
    curve = result["curve"]
    assert len(curve) == protocol.evaluations
    assert [at["backprops"] for at in curve] == sorted(at["backprops"] for at in curve)
    assert (curve[-1]["backprops"], curve[-1]["scored"]) == (result["backprops"], result["scored"])
    assert curve[-1]["altered"] == of_altered
    due = [min(math.floor(at * protocol.evaluations + 1e-9), protocol.evaluations - 1) for at in counted.progress]
    assert counted.curve == due
    assert counted.progress == sorted(counted.progress)
    assert run.progress == 1.0
    if METHODS[method].ends == BACKPROPS:
        assert counted.progress[-1] == 1.0
    else:  # what does not fill a batch is not offered
        offered, planned = counted.offered, run.loader.planned
        assert counted.progress[-1] == pytest.approx((2 + offered / planned) / 3)
        assert offered == planned - planned % (32 if METHODS[method].pooled else 16)
    # The errors.
    model = run.model.eval()
    with torch.no_grad():
        wrong = model(run.held_out.images).argmax(1) != run.held_out.labels
    assert result["error"] == curve[-1]["error"] == pytest.approx(100 * float(wrong.float().mean()))
    by_class = [float(wrong[run.held_out.labels == k].float().mean()) * 100 for k in range(10)]
    assert result["class_errors"] == pytest.approx(by_class, rel=1e-5)
    # The guard.
    assert (result["guard"] is not None) == method.startswith("guarded")
    if result["guard"]:
        verdict = "mislabeled" if doubtful else "unsafe"
        aside = result["guard"].pop("aside")
        assert result["guard"] == {"verdict": verdict, "tau": pytest.approx(1, abs=0.2)}
        assert len(aside) == result["epochs"]
        assert aside[0] == {"all": 0.0, "unaltered": 0.0}
        assert all((each["all"] > 0) == doubtful for each in aside[1:])
        clean = 1 - sum(altered) / len(altered)
        assert all(0 <= each["unaltered"] * clean <= each["all"] + 1e-12 for each in aside)


def test_all_methods_but_the_guarded_ones_differ_from_uniform_and_repeat_themselves():
    curves = {}
    for name in METHODS:
        runs = [finished(TINY, cell(name)).result()["curve"] for _ in range(2)]
        curves[name], again = ([{k: v for k, v in at.items() if k != "seconds"} for at in curve] for curve in runs)
        assert curves[name] == again
    assert all(curves[name] != curves["uniform"] for name in ("random subset", "SB", "InfoBatch", "oracle SB"))


@pytest.mark.parametrize(
    ("method", "budget", "n", "batch", "steps"),
    [
        ("uniform", 1.0, 20, 16, 1),
        ("uniform", 1.0, 119, 8, 14),
        ("uniform", 1.0, 64, 16, 4),  # nothing is left over
        ("random subset", 0.5, 100, 16, 3),  # of 50
        ("IES", 1.0, 119, 8, 14),
        ("SB", 0.5, 120, 16, 6),  # three pools of 32, trained on whole in the first epoch
        ("SB", 0.4, 230, 30, 7),  # three pools of 75: seven batches, and 15 that fill none
        ("VR", 0.3, 119, 8, 13),  # four pools of 27: thirteen batches, and 4 that fill none
    ],
)
def test_what_does_not_fill_a_batch_at_an_epochs_end_is_dropped(method, budget, n, batch, steps):
    counted = Counted(like(examples=n, batch_size=batch), dataclasses.replace(cell(method), budget=budget))
    assert set(counted.sizes) == {batch}
    assert counted.epochs.count(0) == steps
    assert counted.epochs.count(1) > 0
    assert max(counted.epochs.count(epoch) for epoch in counted.epochs) == steps  # none has what another one left over
    first = counted.trained[: steps * batch]
    assert len(set(first)) == len(first)


def test_there_are_as_many_evaluations_as_stated_also_of_few_steps_and_where_all_examples_have_stopped():
    stopped = Counted(like(epochs=12, ies_threshold=100.0, evaluations=24), cell("IES"))
    assert stopped.run.result()["epochs"] == 12
    assert 0 < len(stopped.trained) < 11 * 112  # the last epochs have no batch
    assert len(stopped.run.curve) == 24
    few = Counted(like(examples=20, epochs=1, evaluations=7), cell())
    assert [at["backprops"] for at in few.run.curve] == [16, 16, 16, 16, 16, 32, 32]  # a batch of each epoch


def test_the_last_evaluation_is_after_the_last_step():
    # A pool that is trained on whole gives several batches when all of it has been offered.
    run = finished(like(evaluations=3), cell("VR", budget=0.25))
    assert run.curve[-1]["backprops"] == run.backprops == 3 * 64  # a whole pool of each epoch's 120
    assert run.scored == 0


# Where time goes.


class Ticks:
    """A clock that goes when it is told."""

    def __init__(self, monkeypatch):
        self.now, self.by = 0.0, {}
        monkeypatch.setattr(watch, "time", self)

    def perf_counter(self):
        return self.now

    def go(self, seconds, name=""):
        self.now += seconds
        self.by[name] = self.by.get(name, 0.0) + seconds


class Slow:
    """A tensor whose rows take a second to come."""

    def __init__(self, tensor, ticks):
        self.tensor, self.ticks = tensor, ticks

    def __len__(self):
        return len(self.tensor)

    def __getitem__(self, at):
        self.ticks.go(1, "loading")
        return self.tensor[at]


@pytest.mark.parametrize("method", METHODS)
def test_every_second_of_a_run_is_counted_once_and_by_what_it_was_for(monkeypatch, method):
    ticks = Ticks(monkeypatch)
    run = Run(like(evaluate="validation"), cell(method))
    object.__setattr__(run.examples, "split", Slowed(run.examples.split, ticks))
    evaluating = []
    found = torch.ones(len(run.held_out), dtype=torch.bool), 1.0
    monkeypatch.setattr(training, "evaluate", lambda *a: evaluating.append(1) or ticks.go(64, "evaluation") or found)

    def forward(model, inputs):
        ticks.go(*((8, "forward") if torch.is_grad_enabled() else (16, "scoring")))

    run.model.register_forward_pre_hook(forward)
    optimizer_step, draws = run.optimizer.step, run.loader.batch_sampler.batches

    class SlowDraws:
        batch_size = draws.batch_size

        def __len__(self):
            return len(draws)

        def __iter__(self):
            for batch in draws:
                ticks.go(2, "choosing")
                yield batch

    run.loader.batch_sampler.batches = SlowDraws()
    monkeypatch.setattr(run.optimizer, "step", lambda: ticks.go(32, "backward") or optimizer_step())
    at_begin = ticks.now
    for _ in run.steps():
        ticks.go(1024, "pause")
    whole, paused = ticks.now - at_begin, ticks.by.pop("pause")
    seconds = run.watch.seconds
    assert {name: value for name, value in seconds.items() if value and name} == ticks.by
    assert sum(value for name, value in seconds.items() if name) == whole - paused
    assert seconds[""] == paused
    spent, result = ticks.by, run.result()
    assert result["seconds"] == {name: spent.get(name, 0.0) for name in (*PARTS, "evaluation")}
    assert len(evaluating) == 4
    assert result["curve"][-1]["seconds"] == whole - paused - spent["evaluation"]
    assert (spent.get("scoring", 0) > 0) == (result["scored"] > 0)


class Slowed(Split):
    """Examples whose labels take a second a batch."""

    def __init__(self, split, ticks):
        super().__init__(split.images, Slow(split.labels, ticks))


def test_a_watch_gives_every_moment_to_the_innermost_name(monkeypatch):
    ticks, rng = Ticks(monkeypatch), generator(6)
    for _ in range(50):
        clock, expected = Watch(), {}

        def spend(name, depth, clock=clock, expected=expected):
            for _ in range(int(rng.integers(0, 4))):
                seconds = float(rng.integers(0, 100))
                ticks.go(seconds)
                if name is not None:
                    expected[name] = expected.get(name, 0.0) + seconds
                if depth < 4:
                    inner = str(rng.choice(["a", "b", "c", ""]))
                    try:
                        with clock(inner):
                            spend(inner, depth + 1)
                            if rng.random() < 0.2:
                                raise ArithmeticError
                    except ArithmeticError:
                        pass

        spend(None, 0)
        assert {k: v for k, v in clock.seconds.items() if v} == {k: v for k, v in expected.items() if v}


def test_going_through_items_has_what_they_take_and_not_what_is_done_with_them(monkeypatch):
    ticks, clock = Ticks(monkeypatch), Watch()

    def items():
        for k in range(3):
            ticks.go(10)
            yield k
        ticks.go(5)

    found = []
    with clock("outer"):
        for k in clock.each("items", items()):
            ticks.go(100)
            found.append(k)
    assert found == [0, 1, 2]
    assert clock.seconds == {"outer": 300.0, "items": 35.0}


# How well the altered examples are told.


def plain_auroc(altered, score):
    """Of all pairs of an altered and an unaltered example, the share where the altered one scores higher, or half."""
    known = [(a, s) for a, s in zip(altered, score, strict=True) if not math.isnan(s)]
    pairs = [(s, t) for a, s in known if a for b, t in known if not b]
    return sum(1.0 if s > t else 0.5 if s == t else 0.0 for s, t in pairs) / len(pairs) if pairs else None


def test_detection_is_its_definition():
    rng, met = generator(7), set()
    for _ in range(200):
        n = int(rng.integers(1, 30))
        altered, aside = rng.random(n) < rng.choice([0, 0.5, 1]), rng.random(n) < rng.choice([0, 0.4, 1])
        score = rng.integers(0, 6, n).astype(np.float32)
        score[rng.random(n) < 0.2] = np.nan
        found = _detection(altered, score, aside)
        auroc = plain_auroc(altered.tolist(), score.tolist())
        assert found["auroc"] == (None if auroc is None else pytest.approx(auroc))
        of_altered = [a for a, out in zip(altered.tolist(), aside.tolist(), strict=True) if out]
        assert found["precision"] == (sum(of_altered) / len(of_altered) if of_altered else None)
        assert found["recall"] == (sum(of_altered) / sum(altered.tolist()) if altered.any() else None)
        clean = [out for a, out in zip(altered.tolist(), aside.tolist(), strict=True) if not a]
        assert found["aside_unaltered"] == (sum(clean) / len(clean) if clean else 0.0)
        met |= {name for name, value in found.items() if value is None}
        assert _detection(altered, score, None) == {**dict.fromkeys(found), "auroc": found["auroc"]}
    assert met == {"auroc", "precision", "recall"}


@pytest.mark.parametrize("method", ["uniform", "guarded uniform", "guarded SB"])
def test_what_detection_goes_by_are_the_last_losses_or_the_guards(method, monkeypatch):
    monkeypatch.setattr(Setting, "chance", 1.0)  # so that the guard sets aside
    run = finished(like(epochs=6, lr=0.1, probe=2), dataclasses.replace(cell(method), budget=1.0))
    store, result = run.loader.store, run.result()
    guard = method != "uniform"
    if guard:
        assert store.policy.verdict == "mislabeled"
        assert result["detection"]["recall"] > 0
    score = store.column("smoothed") if guard else run.last_loss
    assert not np.isnan(score).any()
    assert result["detection"]["auroc"] == pytest.approx(plain_auroc(run.altered.tolist(), score.tolist()))


def test_examples_never_scored_say_nothing_of_detection():
    run = finished(like(epochs=1, probe=5), cell("guarded uniform", budget=0.5))
    seen = run.loader.store.seen()
    assert 0 < seen.sum() < 120
    score = np.where(seen, run.loader.store.column("smoothed"), np.nan)
    auroc = plain_auroc(run.altered.tolist(), score.tolist())
    assert run.result()["detection"]["auroc"] == pytest.approx(auroc)
    assert run.result()["detection"]["auroc"] == plain_auroc(run.altered.tolist(), run.last_loss.tolist())


def test_where_nothing_was_altered_nothing_is_detected():
    found = finished(TINY, cell("guarded SB", kind="clean", level=0.0)).result()["detection"]
    assert (found["auroc"], found["recall"]) == (None, None)


def test_a_study_leaves_torch_and_its_data_as_they_were():
    before = load("digits")
    finished(like(shift=1, flip=True), cell("guarded SB"))
    again = whole("digits")
    for one, other in ((before.train, again.train), (before.test, again.test)):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


# What each row is.


def test_every_row_is_made_of_the_policy_and_the_selector_with_the_arguments_of_its_source():
    guard = {"chance": math.log(10), "probe": 2, "tau": 1.7, "clearly": 1.2, "share": 0.15, "momentum": 0.5}
    guard |= {"most": 0.7, "back": 0.05}
    sb = {"batch_size": 16, "beta": 2.0, "history": 1024, "accept_all_epochs": 1, "least_chance": 0.0, "seed": 4}
    uniform, infobatch = {"Uniform": {}}, {"ratio": 0.5, "delta": 0.875}
    expected = {
        "uniform": (uniform, None),
        "random subset": ({"RandomSubset": {"keep": 1 / 3, "fresh": False}}, None),
        "SB": (uniform, {"SelectiveBackprop": sb}),
        "VR": (
            uniform,
            {"VarianceReduction": {"batch_size": 16, "threshold": None, "momentum": 0.9, "unbiased": True, "seed": 4}},
        ),
        "InfoBatch": ({"InfoBatch": infobatch}, None),
        "IES": ({"InstanceEarlyStopping": {"threshold": 0.25, "smooth": 3}}, None),
        "guarded SB": (
            {"NoiseGuard": {"inner": "uniform", "inner_config": None, **guard}},
            {"NoiseGuard": {"inner": "selective_backprop", "inner_config": sb}},
        ),
        "guarded InfoBatch": ({"NoiseGuard": {"inner": "infobatch", "inner_config": infobatch, **guard}}, None),
        "guarded uniform": ({"NoiseGuard": {"inner": "uniform", "inner_config": None, **guard}}, None),
        "oracle SB": (uniform, {"SelectiveBackprop": sb}),
    }
    assert set(expected) == set(METHODS)
    for name, (policy, selector) in expected.items():
        one = dataclasses.replace(cell(name, seed=4), budget=1 / 3)
        protocol = like(probe=2, ies_threshold=0.25)
        run, made = Run(protocol, one), find(name).made_from(Setting(protocol, one, 10))
        assert (made["policy"], made["selector"]) == (policy, selector)
        assert run.loader.store.policy.config() == next(iter(policy.values()))
        assert (run.selector and run.selector.config()) == (selector and next(iter(selector.values())))


def test_the_optimizer_is_the_protocols():
    (group,) = Run(like(lr=0.25, momentum=0.75, weight_decay=0.125), cell()).optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.25, 0.75, 0.125, True)


def test_variance_reduction_selects_where_its_scores_are_uneven():
    run = Run(like(epochs=20), cell("VR", kind="clean", level=0.0, budget=1 / 3))
    run.selector.threshold, run.selector.momentum = 1.01, 0.0
    for _ in run.steps():
        pass
    result = run.result()
    assert result["scored"] > 0
    assert result["backprops"] < 20 * 96  # of which a third where it selects
    assert result["backprops"] == 16 * round(result["backprops"] / 16)


# What cannot go on.


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_diverges_ends_and_is_measured_as_it_is(method):
    run = finished(like(lr=1e9), cell(method))
    result = run.result()
    assert result["diverged"]
    assert result["backprops"] < 180
    assert len(result["curve"]) == 4
    assert result["error"] > 60
    assert result["curve"][-1]["loss"] is None or math.isfinite(result["curve"][-1]["loss"])
    assert not finished(TINY, cell(method)).result()["diverged"]


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("uniform", {"examples": 15}, "^uniform: less than a batch of 16 is left of 15 examples$"),
        ("SB", {"examples": 31}, "^SB 50 %: less than a batch of 32 is left of 31 examples$"),
        ("random subset", {"examples": 16}, "^random subset 50 %: no whole batch came of 16 examples$"),
        ("InfoBatch", {"examples": 15}, "^InfoBatch: no whole batch came of 15 examples$"),
    ],
)
def test_too_few_examples_for_a_batch_are_an_error_and_not_a_run_without_end(method, changes, message):
    with pytest.raises(StudyError, match=message):
        finished(like(**changes), cell(method))


def test_a_guard_that_leaves_less_than_a_batch_is_an_error_and_not_a_run_without_end(monkeypatch):
    monkeypatch.setattr(Setting, "chance", 0.01)
    with pytest.raises(StudyError, match=r"^guarded SB 25 %: less than a batch of 64 is left of 66 examples$"):
        finished(like(examples=66, epochs=12), cell("guarded SB", budget=1 / 4))


def test_an_oracle_to_whom_nothing_is_left_says_so():
    with pytest.raises(StudyError, match=r"^every example is altered"):
        Run(TINY, cell("oracle SB", kind="symmetric", level=1.0))


# Elsewhere.


def test_what_an_accelerator_is_still_at_is_on_the_clock_of_what_asked_for_it(monkeypatch):
    now, left = [0.0], [0.0]
    monkeypatch.setattr(watch.time, "perf_counter", lambda: now[0])

    def settle():
        now[0] += left[0]
        left[0] = 0.0

    timed = Watch(settle)
    with timed("forward"):
        left[0] += 8.0  # asked for, and not waited for
        with timed("choosing"):
            left[0] += 1.0
        left[0] += 2.0
    with timed(""):
        settle()
    assert {name: seconds for name, seconds in timed.seconds.items() if name} == {"forward": 10.0, "choosing": 1.0}
    assert timed.seconds[""] == 0.0
