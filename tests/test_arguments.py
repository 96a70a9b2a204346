"""Promise: every constructor of a method refuses what is no such argument by its name, and keeps plain values."""

import inspect
import json
import math
import re
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
import torch

from fastprio import ScoreStore, policies, selectors
from fastprio._random import Rng
from fastprio.policies import (
    FLOW,
    AlignPrune,
    BatchLossScore,
    Clock,
    GroupDRO,
    Kakurenbo,
    LateStopping,
    LossEMA,
    LossPower,
    OnTheFlyDenoising,
    RandomSubset,
)
from fastprio.policies.arguments import flag, real
from fastprio.selectors import SelectiveBackprop, VarianceReduction

METHODS = {
    f"{name}{of_both}": cls
    for kind, of_both in ((policies, ""), (selectors, "_selector"))  # a policy may have a selector's name
    for name, cls in kind.registered().items()
    if " " not in name  # those with blanks are other tests' own
}
SIZE = 16
WRONG = {
    "string": "high", "None": None, "True": True, "NaN": math.nan, "list": [1, 2, 3], "object": object(),
}  # fmt: skip
ACCEPTED = {
    ("group_dro", "groups", "None"),  # written into the store's column later
    ("odm", "groups", "None"),
    ("selective_backprop_selector", "history", "None"),  # the store's losses
}
"""What is wrong elsewhere and right here, beside None where it is the default and True where a flag is expected."""
BY_STORE = {("group_dro", "groups"), ("odm", "groups"), ("given", "weights")}
"""One for each example: checked when the store is made, which knows how many there are."""
WITH = {
    ("odd", "percentile"): {"threshold": None},
    ("odd", "percentile", "None"): {},
    ("odd", "threshold", "None"): {"percentile": 50},
    ("active_bias", "draws"): {"smoothness": 1.0},
    ("mr", "draws"): {"update": "train"},
    ("noise_guard_selector", "inner_config", "None"): {"inner": selectors.SelectiveBackprop(32)},
}
"""What must change in the example for an argument, or for one value of it, to be right."""


def parameters_of(name):
    return list(inspect.signature(METHODS[name].__init__).parameters.values())[1:]


def fine(name, parameter, wrong):
    given = wrong == "None" and parameter.default is None
    return given or (wrong == "True" and parameter.annotation == "bool") or (name, parameter.name, wrong) in ACCEPTED


CASES = [(name, parameter.name) for name in METHODS for parameter in parameters_of(name)]


@pytest.mark.parametrize(("name", "parameter"), CASES)
@pytest.mark.parametrize("wrong", WRONG)
def test_every_argument_that_is_none_is_refused_by_its_name(name, parameter, wrong):
    cls, of = METHODS[name], {p.name: p for p in parameters_of(name)}[parameter]
    beside = WITH.get((name, parameter, wrong), WITH.get((name, parameter), {}))
    arguments = {**cls.example, **beside, parameter: WRONG[wrong]}
    if fine(name, of, wrong):
        cls(**arguments)
        return
    with pytest.raises((TypeError, ValueError), match=rf"\b{parameter}\b"):  # noqa: PT012
        made = cls(**arguments)
        if (name, parameter) in BY_STORE:
            ScoreStore(SIZE, made, epochs=10)


def test_what_takes_no_arguments_refuses_them():
    for call in (lambda: policies.Uniform(5), lambda: policies.Uniform(alpha=0.5)):
        with pytest.raises(TypeError):
            call()


def as_numpy(value):
    """The same with numpy's scalars for Python's."""
    if isinstance(value, Mapping):
        return {name: as_numpy(each) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map(as_numpy, value))
    kinds = {bool: np.bool_, int: np.int64, float: np.float32}
    return kinds[type(value)](value) if type(value) in kinds else value


def assert_plain(value):
    if isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            assert_plain(each)
    else:
        assert type(value) in (bool, int, float, str, type(None))


@pytest.mark.parametrize("name", METHODS)
def test_numbers_of_numpy_become_pythons_and_are_saved(name):
    cls = METHODS[name]
    defaults = {p.name: p.default for p in parameters_of(name) if p.default is not p.empty}
    made = cls(**as_numpy({**defaults, **cls.example}))
    config = made.config()
    assert_plain(config)
    assert json.dumps(cls(**config).config()) == json.dumps(config)
    if issubclass(cls, selectors.Selector):
        json.dumps(made.state_dict()["config"])
        return
    store = ScoreStore(SIZE, made, epochs=10)
    again = ScoreStore(SIZE, cls(**json.loads(json.dumps(config))), epochs=10)
    again.load_state_dict(store.state_dict())


@pytest.mark.parametrize("cls", [AlignPrune, BatchLossScore])
def test_a_hosts_arguments_are_a_mapping_and_kept_plain(cls):
    made = cls(host="seta", host_config=as_numpy({"ratio": 0.25, "groups": 3}))
    assert made.host_config == {"ratio": 0.25, "groups": 3}
    assert_plain(made.config())
    ScoreStore(SIZE, made, epochs=10).state_dict()
    made = cls(host="self_paced", host_config={"threshold": as_numpy((0.5, 4.0))})
    assert_plain(made.config())
    assert cls(host_config={}).host_config == {}
    for bad in (5, "ratio", [("ratio", 0.5)], {1: 2}, {"nothing": 1}, {"ratio": "half"}):
        with pytest.raises(ValueError, match="host_config = "):
            cls(host_config=bad)
    with pytest.raises(ValueError, match=r"host = 'self_paced'.*no defaults for threshold="):
        cls(host="self_paced")


@pytest.mark.parametrize(
    "make_it",
    [
        lambda value: RandomSubset(0.5, fresh=value),
        lambda value: FLOW(draws=value),
        lambda value: LossPower(max_normalize=value),
        lambda value: GroupDRO(None, 2, temperature=1.0, ema=0.5, reweight=value),
        lambda value: VarianceReduction(8, unbiased=value),
    ],
)
@pytest.mark.parametrize("value", ["no", 0, 1, 0.0])
def test_a_flag_is_true_or_false(make_it, value):
    with pytest.raises(ValueError, match=re.escape(f" = {value!r}: expected True or False")):
        make_it(value)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (5, "pairs"),
        ("ab", "pairs"),
        ((1, 2), "pairs"),
        (((1, 0.5, 2),), "pairs"),
        (((1.5, 0.5),), "epoch = 1.5: expected an integer"),
        (((True, 0.5),), "epoch = True: expected an integer"),
        (((-1, 0.5),), "epoch = -1: expected"),
        (((1, "half"),), "factor = 'half': expected a number, 0 <= factor <= 1"),
        (((1, True),), "factor = True: expected"),
        (((1, math.nan),), "factor = nan: expected"),
        (((1, 0.5), (1, 0.4)), "strictly ascending"),
    ],
)
def test_steps_of_kakurenbo_are_pairs_of_an_epoch_and_a_factor(steps, message):
    with pytest.raises(ValueError, match=rf"^steps = .*{message}"):
        Kakurenbo(1, steps=steps)


def test_steps_of_kakurenbo_may_be_none_or_come_from_numpy():
    assert Kakurenbo(1, steps=()).steps == ()
    steps = Kakurenbo(1, steps=[[np.int64(2), np.float32(0.5)], (3, 0)]).steps
    assert steps == ((2, 0.5), (3, 0))
    assert_plain(steps)


@pytest.mark.parametrize("rounds", [5, None, "ab", ((1.5, 2),), ((True, 2),), ((1, "x"),)])
def test_rounds_of_late_stopping_are_pairs_of_integers(rounds):
    with pytest.raises((TypeError, ValueError), match=r"^rounds"):
        LateStopping(0.9, rounds=rounds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"history": 2.5}, "history = 2.5"),
        ({"history": True}, "history = True"),
        ({"history": "1"}, "history = '1'"),
        ({"accept_all_epochs": -1.5}, "accept_all_epochs = -1.5"),
        ({"accept_all_epochs": -1}, "accept_all_epochs = -1"),
        ({"accept_all_epochs": True}, "accept_all_epochs = True"),
        ({"accept_all_epochs": "1"}, "accept_all_epochs = '1'"),
        ({"beta": math.inf}, "beta = inf: expected a finite number >= 0"),
    ],
)
def test_selective_backprop_counts_in_integers(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SelectiveBackprop(8, **arguments)


@pytest.mark.parametrize("scored", [0, 1, 2, SIZE])
def test_however_close_to_one_evolved_prunes_one_example_stays(scored):
    store = ScoreStore(SIZE, LossEMA(prune=1 - 1e-12))
    store.update(range(scored), np.arange(scored) + 1.0)
    store.policy.plan(store, Clock(1), Rng(0, 1, 0, "plan"))
    assert np.count_nonzero(store.priorities[:scored]) == min(scored, 1)


def test_odd_simulates_with_tensors():
    policy = OnTheFlyDenoising(2, 2, percentile=50)
    for weight, bias in [(np.zeros((3, 2)), None), (torch.zeros(3, 2), np.zeros(3)), ([[0.0]], None)]:
        with pytest.raises(TypeError, match=r"weight, bias: expected tensors, got (ndarray|Tensor|list) and"):
            policy.simulate(weight, bias, 10)
    assert policy.simulate(torch.zeros(3, 2), None, np.int64(10)) == pytest.approx(math.log(3))


@pytest.mark.parametrize("mean", [2, 2.0, np.float32(2), np.array(2.0), torch.tensor(2.0)])
def test_a_reference_is_a_number_or_a_tensor_of_one(mean):
    store = ScoreStore(SIZE, AlignPrune(reference="given"), epochs=10)
    store.policy.plan(store, Clock(0), Rng(0, 0, 0, "plan"))
    store.policy.refer(mean)
    assert store.policy.state["sums"][0] == 2
    for bad in ("2", None, True, torch.ones(2), torch.tensor(True), [2.0]):
        with pytest.raises(ValueError, match=r"mean_loss = .*expected a finite number"):
            store.policy.refer(bad)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(2, 2), (2.0, 2.0), (np.int8(2), 2.0), (np.float16(2), 2.0), (np.longdouble(2), 2.0), (Fraction(4, 2), 2.0)],
)
def test_a_real_argument_is_a_python_number(value, expected):
    found = real("x", value, 2, 2)
    assert found == expected
    assert type(found) is type(expected)


def test_a_real_argument_that_is_a_large_integer_is_a_float():
    assert type(real("x", 2**53)) is type(real("x", -(2**53))) is int
    assert type(real("x", 2**53 + 1)) is type(real("x", -(10**40))) is float
    store = ScoreStore(3, LossPower(eps=2**64))  # no compiled loop takes such an integer
    store.update([0], [1.0])
    assert store.tree[[0]] == np.float32((1 + 2.0**64) ** 0.6)


def test_a_real_argument_has_the_ends_it_is_said_to():
    assert real("x", -1e300) == -1e300
    for arguments, bad, message in [
        ({}, 10**400, "a finite number"),
        ({}, "1", "a finite number"),
        ({"least": 0}, -1, "a finite number >= 0"),
        ({"least": 0, "above": True}, 0, "a finite number > 0"),
        ({"least": 0, "above": True}, Fraction(1, 10**400), "a finite number > 0"),
        ({"least": 0, "most": 1}, np.nextafter(1, 2), "0 <= x <= 1"),
        ({"least": 0, "most": 1, "below": True}, 1, "0 <= x < 1"),
        ({"least": 0, "most": 1, "above": True}, 0.0, "0 < x <= 1"),
        ({"least": 0, "most": 1e100}, 1e101, "0 <= x <= 1e100"),
        ({"least": 0, "most": 1}, np.True_, "a number, 0 <= x <= 1"),
        ({"least": 0, "hint": ", or None"}, None, "a finite number >= 0, or None"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(f'x = {bad!r}: expected {message}')}$"):
            real("x", bad, **arguments)


def test_a_span_has_no_limit_that_it_does_not_name():
    for values in (10**400, (0.5, -1), ("a", "b")):
        with pytest.raises(ValueError, match=f"^{re.escape(f'beta = {values}: expected 0 <= beta < inf')}$"):
            LossPower(beta=values)
    assert_plain(LossPower(beta=as_numpy((0.5, 1.0))).beta)


def test_a_flag_of_numpy_becomes_pythons():
    assert flag("x", np.True_) is True
    assert flag("x", np.False_) is False
