"""Promise: whatever its method, every registered policy saves, resumes, refuses and survives as the protocol says."""

import io
import warnings

import numpy as np
import pytest
import torch
from helpers import generator
from rank_helpers import on_ranks
from test_store import state_of
from torch import nn

from fastprio import (
    PriorityBatchSampler,
    PriorityLoader,
    PrioritySampler,
    ScoreStore,
    cli,
    methods,
    policies,
    selectors,
)
from fastprio._random import Rng
from fastprio.order import scored
from fastprio.policies import Plan, Policy, register, registered
from fastprio.policies.base import find, make
from fastprio.testing import made_up

NAMES = [name for name, of in registered().items() if of.__module__.startswith("fastprio.")]
EPOCHS = 10
BY_BATCH = {"bls", "repb", "odm", "group_dro"}
"""Those whose update depends on which rows come together."""
SUBSETS = {"el2n", "orderdp", "random_subset"}
"""Those that train on a subset of all, so that few of some examples may be in it."""


def new(name, size, **options):
    """A store, with what its policy must be given beside losses."""
    store = ScoreStore(size, registered()[name](**registered()[name].example), epochs=EPOCHS, **options)
    give_groups(store)
    if name == "given":
        store.set_priorities(np.arange(size), np.arange(size) % 3 + 1)
    store.update(np.arange(size), np.arange(size) % 5 + 0.5, origin="reference", **seen_of(store.policy, size, 99))
    return store


def give_groups(store):
    if hasattr(store.policy, "regroup"):
        store.column("group")[:] = np.arange(len(store)) * 7 % store.policy.count
        store.policy.regroup(store)


def seen_of(policy, size, epoch):
    return made_up(policy, size, generator(epoch))


def losses_at(size, epoch):
    return torch.from_numpy(generator(1000 + epoch).exponential(size=size).astype(np.float32))


class Training:
    """A loop that gives a policy all it may ask for, and writes down every batch."""

    def __init__(self, store, batch=8, losses=losses_at, **options):
        self.loader = PriorityLoader(range(len(store)), batch, policy=store, seed=3, **options)
        self.losses, self.batches = losses, []

    def observed(self, batch, epoch):
        losses = self.losses(len(self.loader.store), epoch)[batch]
        others = seen_of(self.loader.store.policy, len(self.loader.store), epoch)
        return losses, {name: torch.from_numpy(value)[batch] for name, value in others.items()}

    def run(self, epochs, begin=0, stop=None):
        for epoch in range(begin, epochs):
            for number, batch in enumerate(self.loader):
                weights = self.loader.weights
                losses, others = self.observed(batch, epoch)
                result = self.loader.step(losses, **others)
                assert torch.isfinite(result)
                assert torch.isfinite(weights).all()
                assert (weights >= 0).all()
                self.batches.append((epoch, batch.tolist(), weights.tolist()))
                if stop == (epoch, number + 1):
                    return self
            self.loader.score(nn.Identity(), lambda model, batch, epoch=epoch: self.observed(batch, epoch))
        return self


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 2, 23, 97])
def test_trains_to_the_end_on_sizes_that_divide_nothing(name, size):
    if name == "ssft" and size == 1:
        with pytest.raises(ValueError, match="needs two at least"):
            new(name, size)
        return
    training = Training(new(name, size)).run(EPOCHS)
    met = {i for _, batch, _ in training.batches for i in batch}
    assert met <= set(range(size))
    assert training.batches[0][0] == 0
    priorities = training.loader.store.priorities
    assert np.isfinite(priorities).all()
    assert (priorities >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_trains_to_the_end_where_all_losses_are_equal(name):
    for value in (0.0, 1.0, 1e30 if name != "odd" else 9.9):  # where all are above its threshold it says so
        training = Training(new(name, 23), losses=lambda n, epoch, value=value: torch.full((n,), value))
        assert training.run(EPOCHS).batches[0][0] == 0


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_training_goes_on_to_the_bit(name):
    size = 41
    whole = Training(new(name, size)).run(EPOCHS)
    epochs = sorted({epoch for epoch, *_ in whole.batches})
    for epoch in {epochs[0], epochs[len(epochs) // 2], epochs[-1]}:
        count = sum(e == epoch for e, *_ in whole.batches)
        first = Training(new(name, size)).run(EPOCHS, stop=(epoch, max(1, count // 2)))
        file = io.BytesIO()
        torch.save(first.loader.state_dict(), file)
        file.seek(0)
        second = Training(new(name, size))
        second.loader.load_state_dict(torch.load(file, weights_only=True))
        second.run(EPOCHS, begin=epoch)
        assert first.batches + second.batches == whole.batches
        assert state_of(second.loader.store) == state_of(whole.loader.store)


@pytest.mark.parametrize("name", NAMES)
def test_a_store_of_it_is_the_same_after_a_file(name, tmp_path):
    store = Training(new(name, 41)).run(6).loader.store
    store.save(tmp_path / "store")
    again = ScoreStore.load(tmp_path / "store")
    assert state_of(again) == state_of(store)
    assert again.policy.config() == store.policy.config()
    assert type(again.policy) is type(store.policy)
    for epoch in range(6, EPOCHS):
        plans = []
        for one in (store, again):
            one.begin_epoch(epoch)
            plan = one.policy.plan(one, one.clock, Rng(3, epoch, 0, "plan"))
            plans.append(None if plan is None else (plan.codes is None or plan.codes.tolist(), plan.weights, plan.info))
            one.update([3, 4], [0.5, 9.0], **seen_of(one.policy, 2, epoch))
        assert plans[0] == plans[1]
    assert state_of(again) == state_of(store)


@pytest.mark.parametrize("name", NAMES)
def test_plans_are_codes_with_weights_and_draw_or_score_something(name):
    store, rng = new(name, 97), generator(5)
    for epoch in range(EPOCHS):
        store.begin_epoch(epoch)
        before = state_of(store)
        plan = store.policy.plan(store, store.clock, Rng(1, epoch, 0, "plan"))
        if plan is not None:
            codes = np.ones(97, np.uint8) if plan.codes is None else plan.codes
            assert codes.dtype == np.uint8
            assert codes.shape == (97,)
            assert codes.max() < len(plan.weights)
            drawn = np.array(plan.weights)[codes] > 0
            asked = scored(plan, 97)
            assert (drawn | asked).any()
            for kind, wanted in (("train", drawn), ("score", asked)):
                rows = rng.permutation(np.flatnonzero(wanted))
                store.update(
                    rows, rng.exponential(size=rows.size), origin=kind, **made_up(store.policy, rows.size, rng)
                )
        else:
            rows = rng.integers(0, 97, 97)
            store.update(rows, rng.exponential(size=97), **made_up(store.policy, 97, rng))
        assert state_of(store) != before


@pytest.mark.parametrize("name", NAMES)
def test_duplicates_are_rows_of_their_own_and_the_last_priority_counts(name):
    at, rng = [3, 5, 3, 3, 7, 5], generator(8)
    together, apart = new(name, 23), new(name, 23)
    for _ in range(8):
        losses, others = rng.exponential(size=6), made_up(together.policy, 6, rng)
        together.update(at, losses, **others)
        for j, i in enumerate(at):
            apart.update([i], losses[j : j + 1], **{k: v[j : j + 1] for k, v in others.items()})
    untouched = [i for i in range(23) if i not in at]
    fresh = new(name, 23)
    for column, kind in together.types.items():
        if kind == "bit" or name in BY_BATCH:
            continue
        np.testing.assert_array_equal(together.column(column), apart.column(column))
        np.testing.assert_array_equal(together.column(column)[untouched], fresh.column(column)[untouched])
    if name not in BY_BATCH:
        np.testing.assert_array_equal(together.priorities, apart.priorities)
        for key, value in together.policy.state.items():
            np.testing.assert_array_equal(value, apart.policy.state[key])
    assert np.flatnonzero(together.seen()).tolist() == [3, 5, 7]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_losses_that_are_not_finite_change_nothing_or_are_left_out(name, value):
    store, skipping = new(name, 23), new(name, 23, on_nonfinite="skip")
    before = state_of(store)
    others = seen_of(store.policy, 3, 1)
    with pytest.raises(ValueError, match=r"losses\[1\]"):
        store.update([1, 2, 3], [1.0, value, 1.0], **others)
    assert state_of(store) == before
    skipping.update([1, 2, 3], [1.0, value, 1.0], **others)
    store.update([1, 3], [1.0, 1.0], **{k: v[[0, 2]] for k, v in others.items()})
    for column in store.types:
        np.testing.assert_array_equal(skipping.column(column), store.column(column))
    assert skipping.skipped_nonfinite == 1


@pytest.mark.parametrize("name", NAMES)
def test_an_observe_that_fails_changes_nothing(name):
    of = registered()[name]

    class Fails(of):
        failing = False

        def observe(self, *arguments):
            priorities = super().observe(*arguments)
            if self.failing and arguments[1].size:
                raise RuntimeError("midway")
            return priorities

    store, rng = new(name, 23), generator(3)
    failing = ScoreStore(23, Fails(**of.example), epochs=EPOCHS)
    failing.load_state_dict(store.state_dict())
    for _ in range(3):
        failing.update([1, 2, 1], [1.0, 2.0, 3.0], **made_up(store.policy, 3, rng))
    before = state_of(failing)
    failing.policy.failing = True
    with pytest.raises(RuntimeError, match="midway"):
        failing.update([4, 2, 2, 22], [1.0, 2.0, 3.0, 9.0], **made_up(store.policy, 4, rng))
    assert state_of(failing) == before


@pytest.mark.parametrize("name", NAMES)
def test_observations_out_of_range_are_refused_by_name_and_place(name):
    store = new(name, 23)
    before = state_of(store)
    for wanted in store.policy.requires:
        for bad in (-1, 1e12, np.nan):
            others = seen_of(store.policy, 3, 1)
            others[wanted] = np.array([0, bad, 1.0])
            with pytest.raises(ValueError, match=rf"{wanted}\[1\] = "):
                store.update([1, 2, 3], np.ones(3), **others)
        with pytest.raises(TypeError, match=f"also needs .*{wanted}"):
            store.update([1], [1.0], **{k: v[:1] for k, v in others.items() if k != wanted})
    assert state_of(store) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_store_that_grows_trains_on_the_new_examples_too(name):
    store = new(name, 23)
    training = Training(store).run(3)
    store.resize(31)
    give_groups(store)
    store.update(np.arange(31), np.ones(31), origin="reference", **seen_of(store.policy, 31, 7))
    if name == "given":
        store.set_priorities(np.arange(23, 31), np.ones(8))
    grown = Training(store)
    grown.loader.set_epoch(3)
    grown.run(EPOCHS, begin=3)
    drawn = {i for _, batch, _ in grown.batches for i in batch} - set(range(23))
    assert len(drawn) >= (1 if name in SUBSETS else 5)  # of the 8 new ones
    assert len(training.batches) >= 3


def trained_on_ranks(rank, ranks, name):
    training = Training(new(name, 48), batch=8 // ranks)
    training.run(4)
    return [(epoch, batch) for epoch, batch, _ in training.batches], state_of(training.loader.store)


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_train_as_one_where_batches_divide(name):
    alone = trained_on_ranks(0, 1, name)
    found = on_ranks(2, trained_on_ranks, 2, name)
    if not new(name, 2).policy.observes:  # nothing is gathered, because nothing is learnt
        assert [e for e, _ in found[0][0]] == [e for e, _ in found[1][0]]
        return
    assert found[0][1] == found[1][1]
    if all(len(batch) == 8 for _, batch in alone[0]):  # no epoch was padded to divide
        assert found[0][1] == alone[1]
        assert [e for e, _ in found[0][0]] == [e for e, _ in alone[0]]


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_without_a_batch_size_draws_from_it(name):
    sampler = PrioritySampler(new(name, 23), seed=1)
    if sampler.store.policy.by_batch:
        with pytest.raises(ValueError, match="its weights are relative to a batch, so pass batch_size="):
            next(iter(sampler))
        assert len(next(iter(PriorityBatchSampler(sampler, 8)))) == 8
        return
    for _ in range(3):
        drawn = list(sampler)
        assert set(drawn) <= set(range(23))
        sampler.skip(len(drawn))


# The table, and one's own.


def is_built_in(of):
    """Tests, and examples that tests run, register their own."""
    return of.__module__.startswith("fastprio.")


def test_every_method_says_what_it_is():
    found = methods.rows()
    assert {row.name for row in found} >= set(NAMES)
    for row in found:
        if not is_built_in(row.of):
            continue
        assert row.source or row.name in ("uniform", "given"), row.name
        assert set(row.acts.split(", ")) <= {"epoch", "draw", "weight", "backprop"}, row.name
        assert row.acts
        assert row.forwards
        assert row.nbytes is not None
        if issubclass(row.of, Policy):
            small, large = (ScoreStore(n, row.of(**row.of.example), epochs=3) for n in (1 << 16, 1 << 17))
            columns = [sum(c.nbytes for k, c in s.columns.items() if k != "seen") for s in (small, large)]
            assert (columns[1] - columns[0]) / (1 << 16) == row.nbytes, row.name


def test_the_page_of_methods_is_what_the_docstrings_say(request, monkeypatch):
    for known in (policies, selectors):
        built_in = {name: of for name, of in known.registered().items() if is_built_in(of)}
        monkeypatch.setattr(known, "registered", lambda built_in=built_in: built_in)
    page = (request.config.rootpath / "docs" / "methods.md").read_text()
    made = methods.page() + "\n"
    assert page.splitlines() == made.splitlines(), "docs/methods.md is not what `fastprio methods --markdown` prints"
    for name in NAMES:
        assert f"`{name}`, a policy: " in page


def test_the_page_has_the_functions_that_a_loop_calls_and_not_those_of_the_protocol():
    page = methods.page()
    section = {part.split("\n", 1)[0]: part for part in page.split("\n## ")[1:]}
    for of, shown in {
        "OnTheFlyDenoising": "simulate(weight, bias, samples, generator=None)",
        "SecondSplitForgetting": "forgotten_at(store)",
        "ReplayMixture": "begin_task(store, size)",
        "AlignPrune": "refer(mean_loss)",
        "GroupDRO": "regroup(store)",
        "ForgettingEvents": "counts(store)",
        "DynUnc": "scores(store)",
        "SmallLoss": "left_out(epoch)",
    }.items():
        assert f"\n**{shown}**\n\n" in section[of]
    assert "\n\nSorts the examples by the groups that are in the column now. Cost: O(size).\n" in section["GroupDRO"]
    for name in ("observe", "plan", "needs_scores", "_remove", "batches"):
        assert f"**{name}(" not in page


@pytest.fixture
def unmakeable():
    @register("not to be made of the test")
    class Unmakeable(Policy):
        """Cannot be made."""

        acts = "draw"

        def __init__(self):
            raise OSError("no such file")

    yield Unmakeable
    policies.base._registry._known.pop(Unmakeable.name)


@pytest.mark.parametrize("arguments", [[], ["--markdown"]])
def test_ones_own_policy_that_cannot_be_made_is_shown_all_the_same(unmakeable, arguments, capsys):
    assert methods.keeps(unmakeable) is None
    assert cli.main(["methods", *arguments]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if unmakeable.name in line)
    assert "Unmakeable" in line
    assert "?" in line


@pytest.mark.parametrize("arguments", [[], ["--markdown"]])
def test_the_command_prints_every_method(arguments, capsys):
    assert cli.main(["methods", *arguments]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}" in out for name in NAMES)


class Halves(Policy):
    """Trains on the half with the larger margins.

    Source: a test; nothing else.
    """

    columns = {"margin": "float32"}  # noqa: RUF012
    requires = ("p_label",)
    acts = "epoch"

    def __init__(self, share=0.5):
        self.share = share

    def observe(self, columns, indices, obs, clock, rng):
        columns["margin"][indices] = obs.p_label

    def plan(self, store, clock, rng):
        order = np.argsort(store.column("margin"), kind="stable")
        codes = np.ones(len(store), np.uint8)
        codes[order[: int(self.share * len(store) / 2)]] = 0
        return Plan(codes)


register("halves of the test")(Halves)


def test_ones_own_policy_works_wherever_a_built_in_does(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("halves of the test") is Halves
    loader = PriorityLoader(range(30), 8, policy="halves of the test", epochs=2)
    for batch in loader:
        loader.step(torch.ones(len(batch)), p_label=batch / 30)
    loader.store.save("store")
    assert ScoreStore.load("store").policy.share == 0.5
    assert cli.main(["methods"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("halves of the test"))
    assert "Halves" in line
    assert "a test" in line
    assert "4 B" in line
    demo = ["demo", "--data", "digits", "--examples", "200", "--epochs", "2", "--batch-size", "40"]
    assert cli.main([*demo, "--policy", "halves of the test"]) == 0
    assert "policy Halves(share=0.5)" in capsys.readouterr().out
    assert cli.main([*demo, "--policy", f"{__name__}:Halves"]) == 0


def test_a_policy_is_found_by_module_and_class():
    assert type(make("fastprio.policies.seta:SeTa", ratio=0.2)).name == "seta"
    for bad, message in {
        "fastprio.policies.seta:Nothing": "Nothing",
        "no.such.module:Policy": "No module named",
        "fastprio.policies.base:Clock": "expected a class derived from Policy",
        "nothing": "expected a Policy, 'package.module:Class', or one of .*seta",
    }.items():
        with pytest.raises(ValueError, match=message):
            make(bad)


def test_a_method_without_defaults_says_what_it_needs():
    with pytest.raises(
        ValueError, match=r"it has no defaults for keep=; make it yourself, RandomSubset\(keep=\.\.\.\)"
    ):
        make("random_subset")


def test_a_misspelt_name_is_told_the_near_one():
    for name, meant in {
        "kakurembo": "kakurenbo",
        "SeTa": "seta",
        "InfoBatch": "infobatch",
        "unifrom": "uniform",
    }.items():
        with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
            make(name)


def test_only_policies_get_names():
    for bad in (int, len, Plan):
        with pytest.raises(TypeError, match="expected a class derived from Policy"):
            register("a name of the test")(bad)
    with pytest.raises(TypeError, match="expected a string"):
        register(Halves)


def test_ones_own_policy_that_needs_arguments_says_which():
    @register("needy of the test")
    class Needy(Policy):
        def __init__(self, a, b=1, *, c):
            self.a, self.b, self.c = a, b, c

    with pytest.raises(ValueError, match="no defaults for a=, c=; make it yourself, Needy"):
        make("needy of the test")
    assert make("needy of the test", a=1, c=2).config() == {"a": 1, "b": 1, "c": 2}


# What a policy cannot do is refused before training, or warned about.


def test_a_policy_that_has_learnt_for_a_store_is_not_given_to_another():
    policy = registered()["late_stopping"](keep=0.9)
    with pytest.raises(ValueError, match="scheme = 'none such'"):
        PriorityLoader(range(10), 2, policy=policy, scheme="none such")
    loader = PriorityLoader(range(10), 2, policy=policy)  # it had not learnt anything yet
    second = ScoreStore(10, policy)
    next(iter(loader))
    for use in (lambda: ScoreStore(10, policy), lambda: second.update([1], [1.0], correct=[1]),
                lambda: second.begin_epoch(1), lambda: second.load_state_dict(loader.store.state_dict())):  # fmt: skip
        with pytest.raises(ValueError, match=r"LateStopping\(.*\): it has learnt for another store; make a new one"):
            use()
    loader.store.update([1], [1.0], correct=[1])


@pytest.mark.parametrize("name", ["kakurenbo", "mr", "late_stopping", "self_paced"])
def test_a_score_pass_that_is_forgotten_is_warned_about_once(name):
    def run(passes):
        training = Training(new(name, 40))
        if not passes:
            training.loader.score = lambda *arguments: None
        return training.run(5)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(passes=True)
    with pytest.warns(UserWarning, match=f"policy '{name}' asked for the losses of .* call loader.score") as found:
        run(passes=False)
    assert len(found) == 1


def test_an_epoch_that_was_broken_off_misses_no_score_pass():
    training = Training(new("kakurenbo", 40)).run(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(iter(training.loader))
        training.run(5, begin=3)


def test_everything_is_scored_after_a_state_of_before_the_first_epoch_was_loaded():
    loader = PriorityLoader(range(40), 8, policy=new("mr", 40))
    loader.load_state_dict(PriorityLoader(range(40), 8, policy=new("mr", 40)).state_dict())
    assert loader.score(nn.Identity(), lambda model, batch: batch.float()) == 40


def test_a_score_pass_before_the_state_was_saved_is_not_missed_after_it():
    training = Training(new("mr", 40)).run(2)
    again = Training(new("mr", 40))
    again.loader.load_state_dict(training.loader.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.run(4, begin=2)


def test_what_an_epochs_plan_asks_for_is_not_guessed_after_a_state_was_loaded():
    training = Training(new("kakurenbo", 40)).run(3, stop=(2, 1))
    again = Training(new("kakurenbo", 40))
    again.loader.load_state_dict(training.loader.state_dict())
    with pytest.raises(RuntimeError, match="a state was loaded, and its epoch has not gone on yet"):
        again.loader.score(nn.Identity(), lambda model, batch: batch.float())
    assert again.loader.score(nn.Identity(), lambda model, batch: again.observed(batch, 2), indices=[5]) == 1
    again.run(3, begin=2)


@pytest.mark.parametrize("name", ["rank", "group_dro", "odm", "replay"])
def test_schemes_are_refused_where_the_policy_draws_in_its_own_way(name):
    for options in ({"replacement": False}, {"scheme": "unique"}, {"scheme": "iid"}):
        with pytest.raises(ValueError, match=f"policy '{name}' draws in its own way"):
            PrioritySampler(new(name, 40), batch_size=8, **options)


@pytest.mark.parametrize("options", [{"replacement": False}, {"scheme": "unique"}])
def test_schemes_without_repeats_are_refused_where_examples_are_set_aside(options):
    with pytest.raises(ValueError, match="sets examples aside, and may leave too few"):
        PrioritySampler(ScoreStore(40, registered()["evolved"](prune=0.5)), batch_size=8, **options)
    assert list(PrioritySampler(ScoreStore(40, "evolved"), batch_size=8, **options))


def test_a_policy_over_groups_that_weighs_takes_any_scheme():
    policy = registered()["group_dro"](None, 4, temperature=1.0, ema=0.5, reweight=True)
    assert sorted(PrioritySampler(ScoreStore(40, policy), batch_size=8, replacement=False)) == list(range(40))


def on_shards(rank, ranks):
    found = {}
    for name in NAMES:
        try:
            training = PriorityLoader(range(40), 8, policy=new(name, 20), shard="sharded")
            batch = next(iter(training))
            found[name] = len(batch)
        except ValueError as error:
            found[name] = str(error)
    return found


def test_shards_are_refused_at_once_where_all_examples_are_needed_together():
    fits = {"evolved", "given", "loss", "recency", "uniform"}
    for found in on_ranks(2, on_shards, 2):
        assert {name for name, value in found.items() if value == 8} == fits
        assert all("goes by all examples together" in found[name] for name in set(NAMES) - fits)


def test_recency_draws_more_than_there_are_with_repeats():
    training = Training(new("recency", 5), batch=8, num_samples=16)
    training.loader.set_epoch(12)
    training.run(14, begin=12)
    assert {len(batch) for _, batch, _ in training.batches} == {8}


def test_a_group_that_does_not_exist_is_refused_at_the_next_epoch_and_harms_nothing():
    store = new("group_dro", 40)
    store.column("group")[:] = np.arange(40) * 60
    store.update(np.arange(40), np.ones(40))  # passed over: no memory beside the groups' is written
    loader = PriorityLoader(range(40), 8, policy=store)
    with pytest.raises(ValueError, match=r"group\[1\] = 60: expected a group in \[0, 4\)"):
        next(iter(loader))


@pytest.mark.parametrize("name", ["rank", "group_dro", "odm"])
def test_a_store_that_shrinks_and_grows_again_draws_all(name):
    store = new(name, 100)
    store.update(np.arange(100), np.ones(100), **seen_of(store.policy, 100, 1))
    store.begin_epoch(1)
    store.policy.plan(store, store.clock, Rng(1, 1, 0, "plan"))
    store.resize(50)
    store.resize(100)
    drawn = [store.policy.draw(store, 20, store.clock, Rng(1, 1, k, "draw"))[0] for k in range(0, 4000, 20)]
    counts = np.bincount(np.concatenate(drawn), minlength=100)
    assert (counts > 0).all()
    assert counts.max() < 2000


def ddp_statistics(rank, ranks):
    torch.manual_seed(rank)
    model = torch.nn.parallel.DistributedDataParallel(nn.BatchNorm1d(3))
    with torch.no_grad():
        model.module.running_mean += rank
    before = model.module.running_mean.tolist()
    loader = PriorityLoader([torch.randn(3) for _ in range(8)], 4, policy=new("mr", 8))
    loader.score(model, lambda model, batch: model(batch).square().sum(1))
    return before == model.module.running_mean.tolist(), model.training


def test_a_pass_through_ddp_exchanges_no_statistics():
    assert on_ranks(2, ddp_statistics, 2) == [(True, True)] * 2
