"""Promise: policies that leave out, align, remove or down-weight do what their definitions say."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import P_FAIL, generator, p_value
from torch import nn

from fastprio import PriorityLoader, PrioritySampler, ScoreStore
from fastprio._kernels import get_bit, put_bit
from fastprio._random import Rng
from fastprio.policies import OUT, SCORE, TRAIN, InfoBatch, Policy, make, observations, register
from fastprio.policies.align_prune import AlignPrune
from fastprio.policies.flow import FLOW
from fastprio.policies.instance_early_stopping import InstanceEarlyStopping
from fastprio.policies.kakurenbo import Kakurenbo
from fastprio.policies.multiplicative_reweighting import MultiplicativeReweighting
from fastprio.policies.on_the_fly_denoising import CHUNK, OnTheFlyDenoising
from fastprio.policies.self_paced import SelfPaced

f32 = np.float32
SIZES = [1, 2, 23]


def plan_of(store, epoch=1, seed=0):
    store.begin_epoch(epoch)
    return store.policy.plan(store, store.clock, Rng(seed, epoch, 0, "plan"))


def codes_at(store, epoch=1, seed=0):
    return plan_of(store, epoch, seed).codes.tolist()


def rows(rng, size, least=0):
    """Where and of which origin an update is: duplicates, all origins, and sometimes nothing."""
    at = rng.integers(0, size, rng.integers(least, 12)).tolist()
    return at, str(rng.choice(["train", "train", "score", "reference"]))


def as_float32(losses):
    return [float(f32(loss)) for loss in losses]


@pytest.mark.parametrize("size", [1, 8, 30])
def test_a_bit_is_put_where_it_belongs_and_no_other_moves(size):
    rng, bits, plain = generator(size), np.zeros((size + 7) // 8, np.uint8), [False] * size
    for _ in range(200):
        i, on = int(rng.integers(size)), bool(rng.integers(2))
        put_bit(bits, i, on)
        plain[i] = on
        assert [bool(get_bit(bits, k)) for k in range(size)] == plain
        assert not any(get_bit(bits, k) for k in range(size, 8 * len(bits)))


def test_an_example_may_name_arguments_that_have_a_default():
    @register("one of two, of the test")
    class OneOfTwo(Policy):
        example = {"needed": 1, "this": 2}  # noqa: RUF012

        def __init__(self, needed, this=None, that=None):
            self.needed, self.this, self.that = needed, this, that

    assert make("one of two, of the test", needed=1, that=3).that == 3
    with pytest.raises(ValueError, match="it has no defaults for needed=; make it yourself"):
        make("one of two, of the test", this=3)


# KAKURENBO.


class PlainKakurenbo:
    def __init__(self, size):
        self.of = [None] * size

    def update(self, at, losses, correct, confidence):
        for row in zip(at, losses, correct, confidence, strict=True):
            self.of[row[0]] = row[1:]

    def check(self, codes, share, threshold):
        """Every code, where no losses tie; with ties, all that are not at the border, and how many there may be."""
        known = sorted((values[0], i) for i, values in enumerate(self.of) if values is not None)
        count = min(int(share * len(self.of)), len(known))
        sure = {i for i, v in enumerate(self.of) if v is not None and v[1] and v[2] >= float(f32(threshold))}
        if count == 0:
            assert codes == [TRAIN] * len(codes)
            return 0
        border = known[count - 1][0]
        below = {i for loss, i in known if loss < border}
        tied = {i for loss, i in known if loss == border}
        for i, code in enumerate(codes):
            if i not in tied:
                assert code == (SCORE if i in below & sure else TRAIN)
        hidden = sum(codes[i] == SCORE for i in tied)
        assert all(i in sure for i in tied if codes[i] == SCORE)
        assert all(codes[i] in (SCORE, TRAIN) for i in tied)
        needed = count - len(below)
        assert max(0, needed - len(tied - sure)) <= hidden <= min(needed, len(tied & sure))
        return codes.count(SCORE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("fraction", "threshold"), [("0.3", 0.7), ("0.5", 0.2), ("0.9", 0.0), ("0", 0.5), ("0.6", 1)])
def test_kakurenbo_hides_what_is_easy_right_and_confident_over_random_histories(size, ties, fraction, threshold):
    steps = ((3, 0.8), (5, 0.5), (7, 0.1))
    store = ScoreStore(size, Kakurenbo(4, float(fraction), threshold, steps))
    plain, rng, hidden = PlainKakurenbo(size), generator(size + ties), 0
    for step in range(300):
        at, origin = rows(rng, size)
        n = len(at)
        losses = as_float32(rng.integers(0, 3, n) if ties else rng.exponential(size=n))
        correct, confidence = rng.random(n) < 0.8, as_float32(np.round(rng.random(n), 1))
        store.update(at, losses, origin=origin, correct=correct, confidence=confidence)
        if origin != "reference":
            plain.update(at, losses, correct.tolist(), confidence)
        epoch = step % 10
        plan = plan_of(store, epoch, seed=step)
        factor = 1 if epoch < 3 else Fraction(8, 10) if epoch < 5 else Fraction(1, 2) if epoch < 7 else Fraction(1, 10)
        share = Fraction(fraction) * factor
        hidden += (found := plain.check(plan.codes.tolist(), share, threshold))
        assert plan.score == (SCORE,)
        assert plan.weights[SCORE] == 0
        assert plan.weights[TRAIN] == 1
        assert plan.info["hidden"] == found
        assert plan.info["lr_scale"] == pytest.approx(float(1 / (1 - share)) if epoch >= 4 else 1)
    assert hidden > 0 or fraction == "0" or size == 1 or (size == 2 and fraction == "0.3") or threshold == 1


def test_kakurenbo_has_the_steps_of_its_code_by_default():
    store = ScoreStore(100, Kakurenbo(warm_up=5))
    store.update(range(100), np.arange(100.0), correct=np.ones(100), confidence=np.full(100, 0.7))
    hidden = {epoch: codes_at(store, epoch).count(SCORE) for epoch in (0, 59, 60, 119, 120, 159, 160, 500)}
    assert hidden == {0: 30, 59: 30, 60: 24, 119: 24, 120: 18, 159: 18, 160: 12, 500: 12}
    scales = [plan_of(store, epoch).info["lr_scale"] for epoch in (4, 5, 60, 160)]
    assert scales == pytest.approx([1, 1 / 0.7, 1 / 0.76, 1 / 0.88])


def test_kakurenbo_takes_the_confidence_over_the_classes_and_not_over_the_batch():
    logits = torch.tensor([[9.0, 0.0, 0.0], [9.0, 8.9, 0.0], [9.0, 0.0, -1.0], [9.0, 8.0, 8.5]])
    of_class = [[math.exp(a) / sum(map(math.exp, row)) for a in row] for row in logits.tolist()]
    right = [max(row) for row in of_class]
    wrong = logits.softmax(0).amax(1).tolist()  # over the batch: of nobody's classes
    assert [p >= 0.7 for p in right] == [True, False, True, False]
    assert [p >= 0.7 for p in wrong] == [False, True, False, True]
    seen = observations(("correct", "confidence"), logits, torch.zeros(4, dtype=torch.int64))
    assert seen["confidence"].tolist() == pytest.approx(right, rel=1e-6)
    store = ScoreStore(4, Kakurenbo(0, fraction=0.99, steps=()))
    store.update(range(4), [1.0, 2.0, 3.0, 4.0], **seen)
    assert codes_at(store) == [SCORE, TRAIN, SCORE, TRAIN]


@pytest.mark.parametrize("correct", [0, 1])
def test_kakurenbo_hides_as_many_of_equal_losses_and_each_as_often(correct):
    store = ScoreStore(10, Kakurenbo(0))
    store.update(range(10), np.ones(10), correct=np.full(10, correct), confidence=np.ones(10))
    n, hidden = 4000, np.zeros(10)
    for seed in range(n):
        codes = np.array(codes_at(store, 1, seed))
        assert (codes == SCORE).sum() == 3 * correct
        hidden += codes == SCORE
    if correct:
        assert p_value(hidden, np.full(10, 0.3 * n)) > P_FAIL


# Instance-dependent early stopping.


def flat_by_definition(losses, smooth, threshold):
    second = [losses[k] - 2 * losses[k - 1] + losses[k - 2] for k in range(2, len(losses))]
    if len(second) < (smooth + 1 if smooth > 1 else 1):
        return False
    return sum(abs(d) for d in second[-smooth:]) / smooth < threshold


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("smooth", [1, 2, 3, 5, 124])
@pytest.mark.parametrize("threshold", [1e-3, 0.5])
def test_ies_leaves_out_what_is_flat_over_random_histories(size, smooth, threshold):
    store, rng = ScoreStore(size, InstanceEarlyStopping(threshold, smooth)), generator(size + smooth)
    histories, level, out = [[] for _ in range(size)], rng.random(size), 0
    for step in range(700 if smooth > 5 else 400):
        at, origin = rows(rng, size)
        spread = [3e-4, 0.2, 2][step // (350 if smooth > 5 else 40) % 3]  # calm and wild by turns
        losses = as_float32([level[i] + spread * rng.random() for i in at])
        store.update(at, losses, origin=origin)
        for i, loss in zip(at, losses, strict=True):
            if origin != "reference":
                histories[i].append(loss)
        plan = plan_of(store, step)
        expected = [SCORE if flat_by_definition(h, smooth, threshold) else TRAIN for h in histories]
        assert plan.codes.tolist() == expected
        assert plan.score == (SCORE,)
        assert plan.weights == (0, 1, 1, 0)
        out += expected.count(SCORE)
    assert out > 0 or (smooth == 124 and size == 23)  # so long a ring fills in small stores only


@pytest.mark.parametrize(("smooth", "least"), [(3, 6), (1, 3), (2, 5)])
def test_ies_waits_for_as_many_losses_as_its_rule_needs(smooth, least):
    store = ScoreStore(3, InstanceEarlyStopping(smooth=smooth))
    for epoch in range(9):
        assert codes_at(store, epoch) == ([SCORE, SCORE] if epoch >= least else [TRAIN, TRAIN]) + [TRAIN]
        store.update([0, 1], [0.5, 2.0])  # equal losses all along; the third is never seen


def test_ies_trains_on_what_is_exactly_at_the_threshold():
    store = ScoreStore(2, InstanceEarlyStopping(threshold=0.5, smooth=1))
    for losses in ([1.0, 1.0], [1.0, 1.0], [1.5, 1.25]):
        store.update([0, 1], losses)
    assert codes_at(store) == [TRAIN, SCORE]


def test_ies_sees_a_plateau_move_that_sixteen_bits_would_not():
    losses = [2.0, 2.0008] * 4
    assert len({float(np.float16(loss)) for loss in losses}) == 1
    store = ScoreStore(2, InstanceEarlyStopping())
    for loss in losses:
        store.update([0, 1], [loss, 2.0])
    assert codes_at(store) == [TRAIN, SCORE]  # 0.0016 >= 1e-3
    assert store.column("losses").dtype == np.float32


def test_ies_takes_an_example_back_when_its_loss_moves_again():
    store = ScoreStore(4, InstanceEarlyStopping())
    for _ in range(6):
        store.update(range(4), [0.1, 0.2, 0.3, 0.4])
    assert codes_at(store) == [SCORE] * 4
    store.update([1], [0.9], origin="score")
    assert codes_at(store) == [SCORE, TRAIN, SCORE, SCORE]
    for _ in range(4):
        store.update([1], [0.9], origin="score")
    assert codes_at(store) == [SCORE] * 4


class Losses(nn.Module):
    """Loss of example x is table[x]: what a loop meets is known."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.as_tensor(table, dtype=torch.float32)

    def forward(self, batch):
        return self.table[batch[0]]


def items(size):
    return torch.utils.data.TensorDataset(torch.arange(size))


def trained_in_an_epoch(loader, table):
    met = []
    for (x,) in loader:
        loader.step(torch.as_tensor(table, dtype=torch.float32)[x])
        met += x.tolist()
    return sorted(met)


def test_ies_may_leave_out_all_scores_them_and_trains_on_all_when_none_is_left_out_any_more():
    loader = PriorityLoader(items(20), 8, policy=InstanceEarlyStopping(), seed=2)
    table = np.linspace(0.1, 2.0, 20)
    for _ in range(6):
        assert trained_in_an_epoch(loader, table) == list(range(20))
        assert loader.score(Losses(table), lambda model, batch: model(batch)) == 0
    assert trained_in_an_epoch(loader, table) == []
    table = table + np.where(np.arange(20) < 5, 0, 1)
    assert loader.score(Losses(table), lambda model, batch: model(batch)) == 20
    assert trained_in_an_epoch(loader, table) == list(range(5, 20))
    table = table + 3 * (np.arange(20) < 5)
    assert loader.score(Losses(table), lambda model, batch: model(batch)) == 5
    assert trained_in_an_epoch(loader, table) == list(range(20))  # the left-out set is empty now


# AlignPrune.


def pearson(xs, ys):
    """Exact but for one square root."""
    n = len(xs)
    dx, dy = [x - sum(xs) / n for x in xs], [y - sum(ys) / n for y in ys]
    xx, yy = sum(d * d for d in dx), sum(d * d for d in dy)
    if xx == 0 or yy == 0:
        return 0.0
    xy = sum(a * b for a, b in zip(dx, dy, strict=True))
    return math.copysign(math.sqrt(xy * xy / (xx * yy)), xy)


class PlainAlign:
    def __init__(self, size, window):
        self.window, self.of, self.told = window, [{} for _ in range(size)], {}
        self.last = [None] * size

    def update(self, epoch, at, losses):
        for i, loss in zip(at, losses, strict=True):
            self.of[i][epoch] = Fraction(loss)
            self.last[i] = loss
            self.told.setdefault(epoch, []).append(Fraction(loss))

    def scores(self, epoch):
        """float or None (kept) for each example, of the epochs before this one."""
        found = []
        for losses in self.of:
            common = [e for e in range(epoch - self.window, epoch) if e in losses and e in self.told]
            if len(common) < 3:
                found.append(None)
                continue
            means = [sum(self.told[e]) / len(self.told[e]) for e in common]
            found.append(pearson([losses[e] for e in common], means))
        return found


def as_infobatch_would(scores, unseen, epoch, seed):
    store = ScoreStore(len(scores), InfoBatch(), epochs=1000)
    at = [i for i in range(len(scores)) if i not in unseen]
    store.update(at, np.array(scores, f32)[at])
    return codes_at(store, epoch, seed)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [3, 5, 10, 32])
@pytest.mark.parametrize("given", [False, True])
def test_alignprune_scores_by_correlation_over_random_histories(size, window, given):
    policy = AlignPrune(window, "given" if given else "population")
    store, plain, rng = ScoreStore(size, policy, epochs=1000), PlainAlign(size, window), generator(size + window)
    constant, epoch, aligned, few, pruned = set(range(0, size, 5)), 0, 0, 0, 0
    for step in range(90):
        plan = plan_of(store, epoch, step)
        unseen = {i for i, last in enumerate(plain.last) if last is None}
        if epoch < window:
            scores = [0.0 if last is None else last for last in plain.last]
            assert store.column("loss").tolist() == scores
        else:
            scores = plain.scores(epoch)
            largest = max((s for s in scores if s is not None), default=0.0)
            aligned += len(scores) - scores.count(None)
            few += scores.count(None)
            scores = [largest if s is None else s for s in scores]
            np.testing.assert_allclose(store.column("loss"), scores, atol=2e-7)
        if plan.codes is not None:
            assert plan.codes.tolist() == as_infobatch_would(store.column("loss"), unseen, epoch, step)
            pruned += plan.codes.tolist().count(OUT)
        for _ in range(3):
            at, origin = rows(rng, size)
            at = [i for i in at if i != 7]  # one is never seen
            losses = as_float32([0.1 if i in constant else 2 / (epoch + 1) + rng.normal() for i in at])
            store.update(at, losses, origin=origin)
            if origin != "reference":
                plain.update(epoch, at, losses)
        if given:
            mean = float(rng.exponential())
            policy.refer(5.0)
            policy.refer(mean)  # the last one counts
            plain.told[epoch] = [Fraction(mean)]
        epoch += 1 if rng.random() < 0.95 else int(rng.integers(2, 2 * window))  # some are passed over
    assert aligned > 0
    assert few > 0 or size < 23
    assert pruned > 0 or size < 23


def test_alignprune_keeps_what_moves_with_the_reference_and_prunes_what_does_not():
    policy = AlignPrune(window=4, reference="given", host_config={"ratio": 0.9})
    store = ScoreStore(40, policy, epochs=100)
    for epoch in range(4):
        assert epoch == 0 or plan_of(store, epoch)
        if epoch == 0:
            plan_of(store, 0)
        falling = 4.0 - epoch
        store.update(range(40), np.where(np.arange(40) < 20, falling + 5, 9 - falling))  # half of them rise
        policy.refer(falling)
    codes = codes_at(store, 4)
    assert store.column("loss").tolist() == pytest.approx([1.0] * 20 + [-1.0] * 20)
    assert codes[:20] == [TRAIN] * 20
    assert codes[20:].count(OUT) == 18


@pytest.mark.parametrize("constant", ["example", "reference", "both"])
@pytest.mark.parametrize("value", [0.1, 1e-45, 3e38, -0.7])
def test_alignprune_scores_zero_where_nothing_moves(constant, value):
    policy = AlignPrune(window=3, reference="given")
    store = ScoreStore(2, policy, epochs=100)
    for epoch in range(3):
        plan_of(store, epoch)
        store.update([0, 1], np.array([value if constant != "reference" else epoch, value], f32))
        policy.refer(value if constant != "example" else epoch)
    assert codes_at(store, 3) == [TRAIN, TRAIN]
    assert store.column("loss").tolist() == [0, 0]


def test_alignprune_with_the_populations_reference_prunes_nothing_where_all_losses_are_alike():
    store = ScoreStore(30, AlignPrune(window=3), epochs=100)
    for epoch in range(8):
        plan = plan_of(store, epoch)
        assert plan.codes is None or plan.codes.tolist() == [TRAIN] * 30
        store.update(range(30), np.full(30, 0.1))
    assert store.column("loss").tolist() == [0] * 30


def test_alignprune_forgets_the_epochs_that_are_begun_again():
    store = ScoreStore(2, AlignPrune(window=3), epochs=100)
    for epoch in (0, 1, 2, 3, 1):  # back to the second
        plan_of(store, epoch)
        store.update([0, 1], [epoch, epoch * epoch])
    known = store.column("known").tolist()
    assert known == [0b010, 0b010]  # 0 was overwritten by 3, which is no more, as is 2
    plan_of(store, 1)
    assert store.column("known").tolist() == [0, 0]


def test_alignprune_asks_for_a_reference_of_every_epoch_that_is_given():
    policy = AlignPrune(window=3, reference="given")
    store = ScoreStore(5, policy, epochs=10)
    with pytest.raises(ValueError, match="no epoch has begun"):
        policy.refer(1.0)
    plan_of(store, 0)
    plan_of(store, 0)  # begun again: not finished
    before = store.state_dict()["arrays"]["column.known"].clone()
    with pytest.raises(ValueError, match=r"epoch 0 has no reference: call policy.refer\(mean_loss\)"):
        plan_of(store, 1)
    assert torch.equal(store.state_dict()["arrays"]["column.known"], before)
    with pytest.raises(ValueError, match="mean_loss = nan: expected a finite number"):
        policy.refer(math.nan)
    policy.refer(0.5)
    plan_of(store, 1)
    with pytest.raises(ValueError, match="epoch 1 has no reference"):
        plan_of(store, 2)
    with pytest.raises(ValueError, match="refer\\(\\) is for reference = 'given'"):
        AlignPrune().refer(1.0)


def test_alignprune_refuses_hosts_that_do_more_than_plan():
    class Keeps(InfoBatch):
        def __init__(self):
            super().__init__()
            self.state = {"plans": 0}

    class Weighs(InfoBatch):
        def weights(self, columns, indices, probabilities, clock):
            return None

    for number, host in enumerate((Keeps, Weighs)):
        register(f"host {number} of the test")(host)
        with pytest.raises(ValueError, match="expected a policy that does no more than plan by column 'loss'"):
            AlignPrune(host=f"host {number} of the test")


# FLOW.


def referenced(losses, **arguments):
    store = ScoreStore(len(losses), FLOW(**arguments))
    store.update(range(len(losses)), losses, origin="reference")
    return store


def median(values):
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tau", [None, 0.3])
@pytest.mark.parametrize("draws", [False, True])
def test_flow_weighs_by_the_reference_loss_over_random_histories(size, tau, draws):
    store, plain, rng = ScoreStore(size, FLOW(tau, draws)), [None] * size, generator(size)
    first = None
    for step in range(300):
        at, origin = rows(rng, size)
        losses = as_float32(rng.exponential(size=len(at)) * 5)
        store.update(at, losses, origin=origin)
        for i, loss in zip(at, losses, strict=True):
            if origin == "reference":
                plain[i] = loss
        lacking = plain.count(None)
        if lacking:
            with pytest.raises(ValueError, match=rf"{lacking} of {size} examples .*score\(pretrained, .*reference"):
                plan_of(store, step)
            continue
        plan = plan_of(store, step)
        first = first or tau or median(plain)  # kept from the first plan on
        expected = [math.exp(-loss / first) for loss in plain]
        if draws:
            assert plan is None
            np.testing.assert_allclose(store.priorities, expected, rtol=1e-6, atol=1e-38)
            assert store.policy.weights(store.columns, np.arange(size), np.ones(size), store.clock) is None
        else:
            assert plan.codes is None
            assert plan.score == ()
            at = rng.integers(0, size, 5)
            weights = store.policy.weights(store.columns, at, np.ones(5), store.clock)
            np.testing.assert_allclose(weights, [expected[i] for i in at], rtol=1e-6, atol=1e-38)
            assert weights.dtype == f32
        assert store.policy.state["tau"] == pytest.approx(first)
    assert first is not None


@pytest.mark.parametrize("draws", [False, True])
def test_flow_gives_weight_one_where_every_reference_loss_is_zero(draws):
    store = referenced([0.0] * 4, draws=draws)
    plan_of(store, 0)
    at = np.arange(4)
    if draws:
        assert store.priorities.tolist() == [1] * 4
    else:
        assert store.policy.weights(store.columns, at, np.ones(4), store.clock).tolist() == [1] * 4


@pytest.mark.parametrize("loss", [1e-45, 0.2, 3e38])
def test_flow_gives_equal_reference_losses_the_weight_one_over_e(loss):
    store = referenced(np.full(4, loss, f32))
    plan_of(store, 0)
    weights = store.policy.weights(store.columns, np.arange(4), np.ones(4), store.clock)
    assert weights.tolist() == pytest.approx([1 / math.e] * 4)


def test_flow_refuses_what_has_no_weights():
    with pytest.raises(ValueError, match=r"losses\[1\] = -0.5: expected reference losses >= 0"):
        referenced([0.0, -0.5, 1.0])
    store = referenced([0.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="median of the reference losses is 0, and they are not all 0; pass tau > 0"):
        plan_of(store, 0)
    store.update([0], [-1.0])  # in training it does not matter
    store = referenced([1.0, 2.0])
    plan_of(store, 0)
    store.resize(3)
    with pytest.raises(ValueError, match="1 of 3 examples have no reference loss"):
        plan_of(store, 1)


def test_flow_in_a_loader_scores_once_and_then_weighs_every_batch_unnormalised():
    reference = generator(3).exponential(size=30)
    loader = PriorityLoader(items(30), 10, policy=FLOW(), seed=1)
    with pytest.raises(ValueError, match="30 of 30 examples have no reference loss"):
        next(iter(loader))
    assert loader.score(Losses(reference), lambda model, batch: model(batch), origin="reference") == 30
    tau, met = median(as_float32(reference)), []
    for _ in range(2):
        for (x,) in loader:
            expected = [math.exp(-reference[i] / tau) for i in x.tolist()]
            assert loader.weights.tolist() == pytest.approx(expected, rel=1e-5)
            losses = torch.rand(10)
            mean = sum(w * loss for w, loss in zip(expected, losses.tolist(), strict=True)) / 10
            assert float(loader.step(losses)) == pytest.approx(mean, rel=1e-5)
            met += x.tolist()
    assert sorted(met) == sorted(2 * list(range(30)))


def test_flow_draws_by_the_weight_from_the_first_epoch_on():
    reference = [0.0, 1.0, 2.0, 4.0, 5000.0]  # the last has weight zero: not even covering draws it
    store = referenced(reference, tau=1.5, draws=True)
    sampler = PrioritySampler(store, 20_000, batch_size=100, scheme="iid", seed=5)
    drawn = np.bincount(list(sampler), minlength=5)
    weights = np.array([math.exp(-loss / 1.5) for loss in reference])
    assert p_value(drawn, drawn.sum() * weights / weights.sum()) > P_FAIL
    assert sampler.weights.tolist() == [1.0] * len(sampler.weights)


# Multiplicative reweighting.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("update", ["score", "train"])
@pytest.mark.parametrize(("eta", "r"), [(0.01, 1.0), (0.5, 1.0), (0.3, 0.7), (0.3, 0.0), (0.0, 1.0)])
def test_mr_adds_up_losses_and_weighs_a_batch_to_mean_one_over_random_histories(size, update, eta, r):
    store = ScoreStore(size, MultiplicativeReweighting(eta, r, update))
    plain, rng = [0.0] * size, generator(size)
    for step in range(300):
        at, origin = rows(rng, size)
        losses = as_float32(rng.normal(size=len(at)) * 4)
        store.update(at, losses, origin=origin)
        for i, loss in zip(at, losses, strict=True):
            if origin == update:
                plain[i] = r * plain[i] + loss
        assert store.column("cumulative").tolist() == plain
        batch = rng.integers(0, size, 6).tolist()
        raw = [math.exp(-eta * plain[i]) for i in batch]
        weights = store.policy.weights(store.columns, np.array(batch), np.ones(6), store.clock)
        np.testing.assert_allclose(weights, [6 * w / sum(raw) for w in raw], rtol=1e-6)
        plan = plan_of(store, step)
        assert plan.codes is None
        assert plan.score == ((TRAIN,) if update == "score" else ())


@pytest.mark.parametrize("r", [Fraction(1), Fraction(1, 2)])
def test_mr_is_exponentiated_gradient_from_equal_weights(r):
    size, eta, rng = 7, Fraction(1, 8), generator(1)
    store = ScoreStore(size, MultiplicativeReweighting(float(eta), float(r)))
    weights = [1 / size] * size
    for epoch in range(30):
        assert plan_of(store, epoch).score == (TRAIN,)
        losses = as_float32(rng.exponential(size=size))
        store.update(range(size), losses, origin="score")
        weights = [w ** float(r) * math.exp(-float(eta) * loss) for w, loss in zip(weights, losses, strict=True)]
        weights = [w / sum(weights) for w in weights]
        found = store.policy.weights(store.columns, np.arange(size), np.ones(size), store.clock)
        np.testing.assert_allclose(found, [size * w for w in weights], rtol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8, 1e12, -1e8])
def test_mr_weights_do_not_underflow_however_large_the_cumulative_losses(offset):
    store = ScoreStore(4, MultiplicativeReweighting(eta=1.0))
    store.column("cumulative")[:] = [offset, offset + 1, offset + 2, offset + 1e6]
    weights = store.policy.weights(store.columns, np.arange(4), np.ones(4), store.clock)
    raw = [1, math.exp(-1), math.exp(-2), 0]
    np.testing.assert_allclose(weights, [4 * w / sum(raw) for w in raw], rtol=1e-6)
    alone = store.policy.weights(store.columns, np.array([3, 3]), np.ones(2), store.clock)
    assert alone.tolist() == [1, 1]


def test_mr_draws_by_the_weights_and_no_weight_ever_becomes_zero():
    policy = MultiplicativeReweighting(eta=1.0, update="train", draws=True)
    store = ScoreStore(5, policy)
    assert plan_of(store, 0) is None
    assert store.priorities.tolist() == [1] * 5
    store.update([1, 2, 3], [0.5, 2.0, 1e6])
    store.update([0, 4], [9.0, 9.0], origin="score")
    assert plan_of(store, 1) is None
    np.testing.assert_allclose(store.priorities[[0, 1, 2, 4]], [1, math.exp(-0.5), math.exp(-2), 1], rtol=1e-6)
    assert 0 < store.priorities[3] < 1e-37
    assert policy.weights(store.columns, np.arange(5), np.ones(5), store.clock) is None
    sampler = PrioritySampler(store, 20_000, batch_size=100, scheme="iid", cover_first=False, seed=5)
    drawn = np.bincount(list(sampler), minlength=5)
    law = np.array([1, math.exp(-0.5), math.exp(-2), 1e-9, 1])
    assert p_value(drawn, drawn.sum() * law / law.sum()) > P_FAIL


def test_mr_scores_everything_without_moving_batch_norm_statistics():
    torch.manual_seed(3)
    x = torch.randn(40, 3) * 4 + 1
    data = torch.utils.data.TensorDataset(x, torch.arange(40))
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    loader = PriorityLoader(data, 8, policy=MultiplicativeReweighting(eta=0.1), seed=1)

    def losses_of(model, batch):
        return model(batch[0])[:, 0] ** 2

    for batch in loader:
        loader.step(losses_of(model, batch))
    assert (loader.store.column("cumulative") == 0).all()  # losses of training do not count
    before = {name: buffer.clone() for name, buffer in model[0].named_buffers()}
    assert loader.score(model, losses_of) == 40
    assert all(torch.equal(buffer, before[name]) for name, buffer in model[0].named_buffers())
    assert len(before) == 3
    assert model[0].training
    with torch.no_grad():
        expected = losses_of(model.eval(), (x,)).tolist()
        np.testing.assert_allclose(loader.store.column("cumulative"), expected, rtol=1e-4, atol=1e-7)
        model.train()
        losses_of(model, (x,))  # in training mode they would have moved
    assert not torch.equal(model[0].running_mean, before["running_mean"])


# On-the-fly denoising.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("history", [1, 3, 127])
@pytest.mark.parametrize("after", [0, 4, 40])
def test_odd_removes_once_what_is_high_on_average_over_random_histories(size, history, after):
    store, rng = ScoreStore(size, OnTheFlyDenoising(after + 1, history, threshold=1.0)), generator(size + after)
    histories = [[] for _ in range(size)]
    removed, errors = None, 0
    for epoch in range(50):
        means = [sum(h[-history:]) / len(h[-history:]) if h else -math.inf for h in histories]
        if epoch > after and removed is None:
            if all(mean >= 1 for mean in means):
                errors += 1
                with pytest.raises(ValueError, match=r"threshold = 1\.0: no example has a lower loss"):
                    plan_of(store, epoch)
                assert not store.column("removed").any()
            else:
                removed = [mean >= 1 for mean in means]
        if epoch <= after:
            assert plan_of(store, epoch).codes is None
        elif removed is not None:
            plan = plan_of(store, epoch)
            assert plan.codes.tolist() == [OUT if out else TRAIN for out in removed]
            assert plan.info == {"removed": sum(removed)}
            assert plan.score == ()
        for _ in range(6):
            at, origin = rows(rng, size)
            losses = as_float32(2 * rng.random(len(at)))
            store.update(at, losses, origin=origin)
            for i, loss in zip(at, losses, strict=True):
                if origin != "reference":
                    histories[i].append(loss)
    assert removed is not None
    assert size < 23 or 0 < sum(removed) < 23


def test_odd_keeps_what_was_never_scored_and_says_when_nothing_would_be_left():
    store = ScoreStore(3, OnTheFlyDenoising(1, 2, threshold=0.5))
    store.update([0, 1], [0.5, 0.5])  # as large as the threshold
    assert codes_at(store, 1) == [OUT, OUT, TRAIN]
    store.resize(5)
    store.update([3], [9.0])
    assert codes_at(store, 2) == [OUT, OUT, TRAIN, TRAIN, TRAIN]  # once is once
    store = ScoreStore(2, OnTheFlyDenoising(1, 2, threshold=0.5))
    store.update([0, 1], [0.5, 0.6])
    with pytest.raises(ValueError, match=r"threshold = 0\.5: no example has a lower loss"):
        plan_of(store, 1)
    store.update([1, 1], [0.4, 0.5])
    assert codes_at(store, 3) == [OUT, TRAIN]


@pytest.mark.parametrize("percentile", [0, 1, 50, 99.5, 100])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_odd_expects_the_log_of_the_classes_from_a_layer_of_zeros(percentile, classes):
    policy = OnTheFlyDenoising(2, 3, percentile)
    for bias in (torch.zeros(classes), None):
        found = policy.simulate(torch.zeros(classes, 16), bias, 300)
        assert found == pytest.approx(math.log(classes), rel=1e-6)
        assert policy.state["threshold"] == found


@pytest.mark.parametrize("samples", [1, 50, CHUNK + 20])
@pytest.mark.parametrize("percentile", [0.0, 30.0, 95.0, 100.0])
def test_odd_simulates_the_losses_of_random_labels(samples, percentile):
    rng = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(5, 4, generator=rng), torch.randn(5, generator=rng)
    found = OnTheFlyDenoising(2, 3, percentile).simulate(weight, bias, samples, torch.Generator().manual_seed(9))
    again, losses = torch.Generator().manual_seed(9), []
    for begin in range(0, samples, CHUNK):
        n = min(CHUNK, samples - begin)
        features = torch.randn(n, 4, generator=again).tolist()
        labels = torch.randint(5, (n,), generator=again).tolist()
        for e, label in zip(features, labels, strict=True):
            z = [
                b + sum(w * max(x, 0.0) for w, x in zip(row, e, strict=True))
                for row, b in zip(weight.tolist(), bias.tolist(), strict=True)
            ]
            losses.append(math.log(sum(map(math.exp, z))) - z[label])
    losses.sort()
    place = percentile / 100 * (samples - 1)
    low, high = math.floor(place), math.ceil(place)
    assert found == pytest.approx(losses[low] + (losses[high] - losses[low]) * (place - low), rel=1e-5, abs=1e-5)


def test_odd_simulates_without_moving_other_random_numbers_or_keeping_a_graph():
    torch.manual_seed(4)
    layer = nn.Linear(6, 3)
    before = torch.get_rng_state()
    policy = OnTheFlyDenoising(1, 2, percentile=90)
    first = policy.simulate(layer.weight, layer.bias, 1000)
    assert policy.simulate(layer.weight, layer.bias, 1000) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert policy.simulate(layer.weight.double(), layer.bias.double(), 1000) == first  # of any floating dtype


def test_odd_says_that_simulate_is_missing_and_takes_its_threshold():
    policy = OnTheFlyDenoising(2, 2, percentile=50)
    store = ScoreStore(3, policy)
    store.update([0, 1], [0.1, 5.0])
    assert plan_of(store, 1).codes is None
    with pytest.raises(ValueError, match=r"none at epoch 2; call policy\.simulate\(weight, bias, samples\)"):
        plan_of(store, 2)
    policy.simulate(torch.zeros(3, 2), torch.zeros(3), 10)  # ln 3
    assert codes_at(store, 2) == [TRAIN, OUT, TRAIN]
    with pytest.raises(ValueError, match="weight, bias: expected shapes"):
        policy.simulate(torch.zeros(3), torch.zeros(3), 10)
    with pytest.raises(ValueError, match="weight, bias: expected shapes"):
        policy.simulate(torch.zeros(3, 2), torch.zeros(2), 10)
    with pytest.raises(ValueError, match="the simulated threshold is nan"):
        policy.simulate(torch.full((3, 2), math.nan), None, 10)
    with pytest.raises(ValueError, match="samples = 0"):
        policy.simulate(torch.zeros(3, 2), None, 0)
    with pytest.raises(ValueError, match="the threshold was given"):
        OnTheFlyDenoising(2, 2, threshold=1.0).simulate(torch.zeros(3, 2), None, 10)


# Self-paced.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threshold", [(0.2, 3.2), (0.5, 0.5), 0.5])
def test_selfpaced_trains_on_what_is_easy_enough_over_random_histories(size, threshold):
    store, plain, rng = ScoreStore(size, SelfPaced(threshold), epochs=8), [None] * size, generator(size)
    start, end = threshold if isinstance(threshold, tuple) else (threshold, threshold)
    for step in range(300):
        at, origin = rows(rng, size)
        losses = as_float32(rng.choice([0.5, *rng.exponential(size=4)], len(at)))
        store.update(at, losses, origin=origin)
        for i, loss in zip(at, losses, strict=True):
            if origin != "reference":
                plain[i] = loss
        epoch = step % 8
        limit = start * (end / start) ** (epoch / 8)
        plan = plan_of(store, epoch)
        assert plan.codes.tolist() == [TRAIN if loss is None or loss < limit else SCORE for loss in plain]
        assert plan.score == (SCORE,)
        assert plan.weights[SCORE] == 0


def test_selfpaced_goes_by_the_flag_of_the_unseen_and_not_by_what_stands_in_their_column():
    store = ScoreStore(4, SelfPaced((0.1, 1.0)), epochs=3)
    store.column("loss")[:] = 9.0
    store.update([1], [9.0])
    assert codes_at(store, 0) == [TRAIN, SCORE, TRAIN, TRAIN]


def test_selfpaced_in_a_loader_scores_what_it_leaves_out_and_trains_on_more_and_more():
    table = np.geomspace(0.1, 10, 32)
    loader = PriorityLoader(items(32), 8, policy=SelfPaced((0.1, 12.0)), epochs=5, seed=3)
    lengths = []
    for epoch in range(5):
        met = trained_in_an_epoch(loader, table)
        limit = 0.1 * 120 ** (epoch / 5)
        easy = [i for i in range(32) if table[i] < limit]
        assert met == (list(range(32)) if epoch == 0 else easy)
        assert loader.score(Losses(table), lambda model, batch: model(batch)) == 32 - len(met)
        assert loader.store.stats()["staleness"] == 0
        lengths.append(len(met))
    assert 0 < lengths[1] < lengths[2] < lengths[3] < lengths[4] < 32


# What all of them share.

EACH = {
    "kakurenbo": Kakurenbo(1),
    "ies": InstanceEarlyStopping(0.3),
    "align": AlignPrune(window=4),
    "align, given": AlignPrune(window=4, reference="given", host_config={"ratio": 0.8}),
    "flow": FLOW(),
    "flow, draws": FLOW(draws=True),
    "mr": MultiplicativeReweighting(regularization=0.9),
    "mr, draws": MultiplicativeReweighting(update="train", draws=True),
    "odd": OnTheFlyDenoising(3, 2, percentile=50),
    "self_paced": SelfPaced((0.3, 2.0)),
}


def an_epoch(store, epoch, rng):
    """What an epoch leaves: its plan, the weights or priorities; then some updates of it."""
    policy = store.policy
    if epoch == 0:
        everything = dict(correct=np.ones(len(store)), confidence=np.ones(len(store))) if policy.requires else {}
        store.update(range(len(store)), rng.exponential(size=len(store)), origin="reference", **everything)
    if isinstance(policy, OnTheFlyDenoising) and epoch == 1:
        policy.simulate(torch.ones(3, 2), None, 20)
    plan = plan_of(store, epoch, seed=7)
    weights = policy.weights(store.columns, np.arange(len(store)), np.ones(len(store)), store.clock)
    seen = None if plan is None else (None if plan.codes is None else plan.codes.tolist(), plan.info, plan.score)
    for _ in range(5):
        at = rng.integers(0, len(store) - 2, 15)
        beside = dict(correct=rng.random(15) < 0.9, confidence=rng.random(15)) if policy.requires else {}
        store.update(at, rng.exponential(size=15), origin=str(rng.choice(["train", "score"])), **beside)
    if isinstance(policy, AlignPrune) and policy.reference == "given":
        policy.refer(float(rng.random()))
    return seen, None if weights is None else weights.tolist(), store.priorities.tolist()


@pytest.mark.parametrize("which", EACH)
@pytest.mark.parametrize("file", [False, True])
def test_a_policy_goes_on_from_its_saved_state_as_if_nothing_had_been(which, file, tmp_path):
    policy = EACH[which]
    name, config = policy.name, policy.config()
    for stop in range(1, 8):
        store, rng = ScoreStore(25, make(name, **config), epochs=10), generator(stop)
        for epoch in range(stop):
            an_epoch(store, epoch, rng)
        if file:
            store.save(tmp_path / "store")
            again = ScoreStore.load(tmp_path / "store")
        else:
            again = ScoreStore(25, make(name, **config), epochs=10)
            again.load_state_dict(store.state_dict())
        assert again.policy.config().keys() == config.keys()
        for epoch in range(stop, stop + 5):
            assert an_epoch(store, epoch, generator(epoch)) == an_epoch(again, epoch, generator(epoch))


@pytest.mark.parametrize("which", EACH)
def test_a_plan_is_a_matter_of_the_past_and_the_seed_alone(which):
    policy = EACH[which]
    found = []
    for _ in range(2):
        store, rng = ScoreStore(25, make(policy.name, **policy.config()), epochs=10), generator(3)
        np.random.seed(1 if found else 2)  # noqa: NPY002
        found.append([an_epoch(store, epoch, rng) for epoch in range(8)])
    assert found[0] == found[1]


@pytest.mark.parametrize("which", [w for w in EACH if not w.startswith("flow")])
def test_what_was_never_scored_is_trained_on_whatever_the_losses_of_others(which):
    policy = EACH[which]
    for losses in (np.full(23, 0.1), generator(1).exponential(size=23), np.full(23, 50.0)):
        store = ScoreStore(25, make(policy.name, **policy.config()), epochs=20)
        beside = {"correct": np.ones(23), "confidence": np.ones(23)} if policy.requires else {}
        for epoch in range(9):
            if which == "odd" and epoch == 2:
                store.policy.simulate(torch.ones(3, 2), None, 20)
            plan = plan_of(store, epoch)
            if plan is None:
                assert store.priorities[23] == store.priorities[24] == store.priorities.max()
            else:
                assert plan.codes is None or plan.codes[23:].tolist() == [TRAIN, TRAIN]
            store.update(range(23), losses, origin="train", **beside)
            store.update(range(23), losses, origin="score", **beside)
            if which == "align, given":
                store.policy.refer(1.0)


BAD = [
    (Kakurenbo, {"warm_up": -1}, "warm_up = -1: expected"),
    (Kakurenbo, {"warm_up": 1, "fraction": 1.0}, "fraction = 1.0: expected 0 <= fraction < 1"),
    (Kakurenbo, {"warm_up": 1, "fraction": -0.1}, "fraction = -0.1"),
    (Kakurenbo, {"warm_up": 1, "threshold": 1.1}, "threshold = 1.1: expected 0 <= threshold <= 1"),
    (Kakurenbo, {"warm_up": 1, "threshold": math.nan}, "threshold = nan"),
    (Kakurenbo, {"warm_up": 1, "steps": ((5, 0.5), (4, 0.4))}, "steps = .*ascending"),
    (Kakurenbo, {"warm_up": 1, "steps": ((5, 1.5),)}, r"steps = .*factor in \[0, 1\]"),
    (InstanceEarlyStopping, {"threshold": 0}, "threshold = 0: expected a finite number > 0"),
    (InstanceEarlyStopping, {"threshold": math.inf}, "threshold = inf"),
    (InstanceEarlyStopping, {"smooth": 0}, r"smooth = 0: expected an integer in \[1, 124\]"),
    (InstanceEarlyStopping, {"smooth": 125}, "smooth = 125"),
    (AlignPrune, {"window": 2}, r"window = 2: expected an integer in \[3, 32\]"),
    (AlignPrune, {"window": 33}, "window = 33"),
    (AlignPrune, {"reference": "mean"}, "reference = 'mean': expected 'population' or 'given'"),
    (AlignPrune, {"host": "loss"}, "host = 'loss': expected a policy that does no more than plan"),
    (AlignPrune, {"host": "ies"}, "host = 'ies': expected a policy that does no more"),
    (AlignPrune, {"host": "nobody"}, "policy = 'nobody': expected"),
    (AlignPrune, {"host": InfoBatch()}, "host = InfoBatch.*: expected a policy's name"),
    (AlignPrune, {"host_config": {"ratio": 2}}, "ratio = 2: expected"),
    (FLOW, {"tau": 0.0}, "tau = 0.0: expected a finite number > 0, or None"),
    (FLOW, {"tau": math.nan}, "tau = nan"),
    (MultiplicativeReweighting, {"eta": -1.0}, "eta = -1.0: expected"),
    (MultiplicativeReweighting, {"eta": math.inf}, "eta = inf: expected"),
    (MultiplicativeReweighting, {"regularization": 1.1}, "regularization = 1.1: expected 0 <="),
    (MultiplicativeReweighting, {"update": "all"}, "update = 'all': expected 'score' or 'train'"),
    (MultiplicativeReweighting, {"draws": True}, "draws = True: expected update = 'train' with it, got 'score'"),
    (OnTheFlyDenoising, {"epoch": 0, "history": 1, "threshold": 1.0}, "epoch = 0: expected an integer >= 1"),
    (
        OnTheFlyDenoising,
        {"epoch": 1, "history": 0, "threshold": 1.0},
        r"history = 0: expected an integer in \[1, 127\]",
    ),
    (OnTheFlyDenoising, {"epoch": 1, "history": 128, "threshold": 1.0}, "history = 128"),
    (OnTheFlyDenoising, {"epoch": 1, "history": 1}, "percentile = None, threshold = None: expected one of the two"),
    (OnTheFlyDenoising, {"epoch": 1, "history": 1, "percentile": 1, "threshold": 1.0}, "expected one of the two"),
    (OnTheFlyDenoising, {"epoch": 1, "history": 1, "percentile": 101}, "percentile = 101: expected 0 <="),
    (OnTheFlyDenoising, {"epoch": 1, "history": 1, "threshold": math.nan}, "threshold = nan: expected"),
    (SelfPaced, {"threshold": (0, 1.0)}, r"threshold = \(0, 1.0\): expected 0 < start <= end"),
    (SelfPaced, {"threshold": (2.0, 1.0)}, "threshold = .*: expected 0 < start <= end"),
    (SelfPaced, {"threshold": (1.0, math.inf)}, "threshold = .*: expected"),
    (SelfPaced, {"threshold": "high"}, "threshold = high: expected"),
]


@pytest.mark.parametrize(("policy", "arguments", "message"), BAD)
def test_a_bad_argument_is_refused_by_name_and_value(policy, arguments, message):
    with pytest.raises(ValueError, match=message):
        policy(**arguments)


@pytest.mark.parametrize("name", ["align", "self_paced"])
def test_policies_that_change_over_training_need_the_number_of_epochs(name):
    method = make(name, **({"threshold": (0.1, 1.0)} if name == "self_paced" else {}))
    with pytest.raises(ValueError, match=f"'{name}' changes over training: pass epochs="):
        ScoreStore(10, method)


@pytest.mark.parametrize("name", ["kakurenbo", "ies", "align", "flow", "mr", "odd", "self_paced"])
def test_every_example_of_arguments_makes_a_policy_that_says_what_it_is(name):
    kind = type(EACH[name])
    method = kind(**kind.example)
    assert method.name == name
    assert method.acts
    assert method.forwards
    assert "\n    Source: " in kind.__doc__
