"""Promise: the study's report says what its runs say: every statistic is as plain Python has it."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from report_helpers import UNIFORM, guarded, made, study, uniforms
from scipy import stats

from fastprio.study.grid import line
from fastprio.study.presets import PRESETS
from fastprio.study.protocol import Cell
from fastprio.study.report import claims, errors, findings, measures, sections, selection, speed
from fastprio.study.report.measures import Bound
from fastprio.study.report.results import Results, balanced, of_the_rare

THIRD = 1 / 3


def curve(*found: float) -> list[dict[str, float]]:
    return [{"error": error, "backprops": 10 * (turn + 1), "seconds": turn + 0.5} for turn, error in enumerate(found)]


def points(*found: float) -> list[tuple[float, float]]:
    """Errors at 100, 200, 400, 800 ... backprops."""
    return [(100.0 * 2**place, error) for place, error in enumerate(found)]


# Reaching a target.


@pytest.mark.parametrize(
    ("found", "first"),
    [
        ((9.0, 5.0, 5.0, 9.0), 20.0),
        ((5.0, 9.0, 4.0, 3.0), 30.0),  # once below does not count
        ((9.0, 9.0, 9.0, 1.0), None),  # nor does the last evaluation alone
        ((9.0, 9.0, 5.0, 5.0), 30.0),
        ((5.0, 5.0), 10.0),
        ((5.1, 5.0, 5.1), None),
        ((1.0,), None),
    ],
)
def test_a_target_is_reached_at_the_first_of_two_evaluations_in_a_row(found, first):
    assert measures.reached(curve(*found), 5.0, "backprops") == first
    assert measures.reached(curve(*found), 5.0, "seconds") == (None if first is None else first / 10 - 0.5)


def test_a_speed_up_is_uniforms_backprops_to_the_target_over_the_methods_with_the_same_seed():
    results = Results(
        [
            made("clean", 0.0, "uniform", 1.0, 0, UNIFORM),  # target 12, at 750
            made("clean", 0.0, "uniform", 1.0, 1, [50.0, 23.0, 21.0, 20.0]),  # target 24, at 500
            made("clean", 0.0, "SB", 0.5, 0, [40.0, 12.0, 12.0, 13.0]),  # at 250
            made("clean", 0.0, "SB", 0.5, 1, [24.0, 24.0, 30.0, 31.0]),  # at 125
            made("clean", 0.0, "SB", 0.5, 2, [1.0, 1.0, 1.0, 1.0]),  # without its uniform
        ]
    )
    uniform, sb = speed.speed_ups(results, 1.2)
    assert [sb[name] for name in ("least", "speed_up", "most")] == [750 / 250, 750 / 250, 500 / 125]
    assert sb["error"] == pytest.approx((13 + 31 + 1) / 3)
    assert (sb["seeds"], uniform["speed_up"]) == (3, 1.0)
    assert speed.speed_up(results, "clean", "SB 50 %", 0, 1.2, "seconds") == pytest.approx(750 / 250)


def test_a_speed_up_is_the_median_over_the_seeds_of_which_those_that_never_get_there_have_none():
    lines = [made("clean", 0.0, "uniform", 1.0, seed, UNIFORM) for seed in range(4)]
    never, at = [90.0, 90.0, 90.0, 90.0], [[40.0] * k + [12.0] * (4 - k) for k in range(3)]  # 6, 3 and 2 times

    def found(*curves):
        runs = [made("clean", 0.0, "SB", 0.5, seed, errors) for seed, errors in enumerate(curves)]
        (_, record) = speed.speed_ups(Results([*lines, *runs]), 1.2)
        return [record[name] and round(record[name], 9) for name in ("least", "speed_up", "most")]

    assert found(*at) == [2, 3, 6]
    assert found(*at, at[0]) == [2, 3, 6]  # the lower one of two in the middle
    assert found(at[0], at[1], never) == [None, 3, 6]
    assert found(at[0], never, at[1], never) == [None, None, 6]
    assert found(never) == [None, None, None]
    alone = Results([made("clean", 0.0, "SB", 0.5, 0, at[0])])
    assert speed.speed_ups(alone, 1.2)[0]["speed_up"] is None  # no uniform at all


# The curve of uniform training.


def test_what_uniform_needs_is_read_off_straight_lines_over_the_logarithm():
    found = points(20.0, 10.0, 10.0, 6.0)
    grid = np.geomspace(100, 800, 200_001)
    for error in (20.0, 17.5, 10.0, 9.0, 6.0):
        values = np.interp(np.log(grid), np.log([cost for cost, _ in found]), [error for _, error in found])
        assert measures.needed(found, error) == (pytest.approx(grid[np.argmax(values <= error)], rel=1e-4), "")


def test_what_uniform_needs_is_a_bound_off_the_ends_of_its_curve():
    assert measures.needed(points(20.0, 10.0), 21.0) == Bound(100.0, "<")
    assert measures.needed(points(20.0, 10.0), 9.0) == Bound(200.0, ">")
    assert measures.needed(points(20.0, 10.0, 30.0), 12.0).value < 200  # the first crossing, not a later one
    assert measures.needed(points(5.0, 10.0, 30.0), 12.0) == Bound(100.0, "<")


def test_uniforms_least_error_within_a_cost_is_read_off_the_same_lines():
    found = points(20.0, 10.0, 12.0, 6.0)
    for cost in (100.0, 150.0, 200.0, 283.0, 400.0, 500.0, 700.0, 800.0):
        costs = np.geomspace(100, cost, 2001)
        lines = np.interp(np.log(costs), np.log([100, 200, 400, 800]), [20, 10, 12, 6])
        assert measures.least_within(found, cost) == (pytest.approx(lines.min(), abs=1e-2), "")
    assert measures.least_within(found, 99.0) is None
    assert measures.least_within(found, 801.0) == Bound(6.0, "<")
    assert measures.least_within(points(5.0, 10.0), 300.0) == Bound(5.0, "<")


def test_a_mean_with_bounds_is_a_bound_and_with_both_kinds_neither():
    assert measures.mean_bound([Bound(1.0), Bound(3.0)]) == (2.0, "")
    assert measures.mean_bound([Bound(1.0), Bound(3.0, "<")]) == (2.0, "<")
    assert measures.mean_bound([Bound(1.0, ">"), Bound(3.0, ">")]) == (2.0, ">")
    assert measures.mean_bound([Bound(1.0, ">"), Bound(3.0, "<")]) == (2.0, "~")


def test_the_speed_up_over_the_curve_is_by_seed_and_by_the_methods_own_backprops():
    lines = [
        *uniforms(),
        made("clean", 0.0, "SB", 0.25, 0, [50.0, 12.0]),  # uniform needs 1000 / sqrt(2)
        made("clean", 0.0, "SB", 0.25, 1, [50.0, 9.0]),  # more than 1000
        made("clean", 0.0, "SB", 0.25, 2, [50.0, 9.0]),  # no curve
    ]
    found = {record["row"]: record for record in speed.over_curve(study(lines))}
    sb = found["SB 25 %"]
    assert sb["speed_up"] == pytest.approx((1000 / math.sqrt(2) / 250 + 1000 / 250) / 2)
    assert (sb["sign"], sb["seeds"]) == (">", 2)
    assert found["random subset 25 %"]["speed_up"] == found["uniform"]["speed_up"] == pytest.approx(1.0)
    assert speed.over_curve(study(lines[:1])) == []  # one budget makes no curve


def test_seconds_are_compared_at_uniforms_rate_of_the_same_pass():
    slow = made("clean", 0.0, "uniform", 1.0, 0, UNIFORM, seconds=dict.fromkeys(speed.PARTS, 0.4))  # 2 ms a backprop
    share = {"loading": 0.0, "choosing": 0.01, "scoring": 0.0, "forward": 0.5, "backward": 0.49, "evaluation": 7.0}
    sb = made("clean", 0.0, "SB", 0.25, 0, [50.0, 12.0], seconds=share)  # 1 s: uniform has 500 backprops, 14 %
    short = made("clean", 0.0, "VR", 0.25, 0, [50.0, 12.0], seconds=dict.fromkeys(speed.PARTS, 0.01))
    long = made("clean", 0.0, "IES", 1.0, 0, [50.0, 9.0], seconds=dict.fromkeys(speed.PARTS, 1.0))
    whole = study(uniforms(), [slow, sb, short, long])
    one, beyond = speed.at_equal_seconds(whole)
    assert (one["row"], one["seconds"], one["uniform"]) == ("SB 25 %", pytest.approx(1.0), pytest.approx(14.0))
    assert one["difference"] == pytest.approx(-2.0)
    assert (beyond["row"], beyond["uniform"], beyond["beyond"]) == ("IES", 10.0, 1)
    in_seconds = {record["row"]: record["speed_up"] for record in speed.over_curve(whole, speed.SECONDS)}
    assert in_seconds["SB 25 %"] == pytest.approx(2 * 0.5 * math.sqrt(2))
    parts = {record["row"]: record for record in speed.parts(whole.timed)}
    assert parts["SB 25 %"]["choosing"] == pytest.approx(0.01)
    assert sum(parts["uniform"][name] for name in speed.PARTS) == pytest.approx(1.0)


def test_the_best_uniform_budget_is_that_of_the_least_mean_error():
    lines = uniforms() + [made("clean", 0.0, "random subset", 2 / 3, seed, [50.0, 9.0 - seed]) for seed in range(2)]
    (best,) = speed.best_uniform(Results(lines))
    assert best == {"column": "clean", "error": 10.0, "best": "random subset 67 %", "best_error": 8.5, "seeds": 2}
    (best,) = speed.best_uniform(Results(lines[:-1]))  # over the seeds that have it
    assert (best["best"], best["best_error"], best["seeds"]) == ("random subset 67 %", 9.0, 1)
    assert speed.best_uniform(Results(lines[1:3])) == []  # no whole one


def test_a_seed_without_all_of_the_columns_budgets_has_no_curve():
    lines = uniforms(seeds=3)
    assert speed.uniform_curve(Results(lines), "clean", 2) == [(250, 18.0), (500, 14.0), (1000, 10.0)]
    results = Results(lines[:-1])
    assert [speed.uniform_curve(results, "clean", seed) is None for seed in range(3)] == [False, False, True]
    assert speed.uniform_curve(Results(lines[::3]), "clean", 0) is None  # a single budget


# Differences.


@pytest.mark.parametrize("n", [2, 3, 6, 21])
def test_intervals_are_students(n):
    values = np.random.default_rng(n).normal(size=n).tolist()
    found = measures.interval(values)
    low, high = stats.t.interval(0.9, n - 1, statistics.mean(values), statistics.stdev(values) / math.sqrt(n))
    assert found == (
        pytest.approx(statistics.mean(values)),
        pytest.approx(low, abs=2e-3),
        pytest.approx(high, abs=2e-3),
        n,
    )


def test_an_interval_of_many_is_a_little_too_wide_and_of_one_unknown():
    values = np.random.default_rng(0).normal(size=200).tolist()
    half = stats.t.ppf(0.95, 199) * statistics.stdev(values) / math.sqrt(200)
    found = measures.interval(values)
    assert half < (found.high - found.low) / 2 < 1.05 * half
    assert measures.interval([3.0]) == (3.0, None, None, 1)


def test_differences_are_paired_by_seed():
    lines = [
        *uniforms(),  # 10, 14 and 18 %
        made("clean", 0.0, "SB", 0.5, 0, [50.0, 13.0]),
        made("clean", 0.0, "SB", 0.5, 1, [50.0, 16.0]),
        made("clean", 0.0, "guarded SB", 0.5, 1, [50.0, 12.0]),
        made("clean", 0.0, "guarded SB", 0.5, 7, [50.0, 99.0]),  # a seed that nothing else has
        made("clean", 0.0, "InfoBatch", 1.0, 0, [50.0, 8.0], backprops=500),
        made("clean", 0.0, "IES", 1.0, 0, [50.0, 8.0], backprops=1500),  # beyond the curve
        made("clean", 0.0, "VR", 0.5, 0, [50.0, 12.0], backprops=900),  # more than its budget
        made("clean", 0.0, "VR", 0.5, 1, [50.0, 12.0], backprops=510),
    ]
    found = {(r["row"], r["against"]): (r["mean"], r["seeds"]) for r in errors.differences(Results(lines), "clean")}
    assert found == {
        ("random subset 50 %", "uniform"): (4.0, 2),
        ("random subset 25 %", "uniform"): (8.0, 2),
        ("SB 50 %", "uniform"): (4.5, 2),
        ("SB 50 %", "random subset"): (0.5, 2),
        ("SB 50 %", errors.WITHIN_ITS_BACKPROPS): (0.5, 2),
        ("guarded SB 50 %", "uniform"): (2.0, 1),
        ("guarded SB 50 %", "random subset"): (-2.0, 1),
        ("guarded SB 50 %", "unguarded"): (-4.0, 1),
        ("guarded SB 50 %", errors.WITHIN_ITS_BACKPROPS): (-2.0, 1),
        ("InfoBatch", "uniform"): (-2.0, 1),
        ("IES", "uniform"): (-2.0, 1),
        ("InfoBatch", errors.WITHIN_ITS_BACKPROPS): (-6.0, 1),
        ("IES", errors.WITHIN_ITS_BACKPROPS): (-2.0, 1),
        ("VR 50 %", "uniform"): (2.0, 2),
        ("VR 50 %", "random subset"): (-2.0, 1),
        ("VR 50 %", errors.WITHIN_ITS_BACKPROPS): (pytest.approx(2 * math.log2(900 * 510 / 500**2) - 2), 2),
    }


def test_the_balanced_error_is_the_mean_of_the_classes_errors_and_the_rare_are_the_last_three():
    result = made("rare", 0.98, "uniform", 1.0, 0, UNIFORM)["result"]  # 10, 13, 16 and 13 %
    assert balanced(result) == pytest.approx(13.0)
    assert of_the_rare(result) == pytest.approx(14.0)


def test_costs_are_shares_of_uniforms_backprops():
    lines = [*uniforms(seeds=1), made("clean", 0.0, "SB", 0.5, 0, [50.0, 12.0], scored=750)]
    found = {record["row"]: (record["backprops"], record["scored"]) for record in errors.costs(Results(lines))}
    assert found["SB 50 %"] == (0.5, 0.75)
    assert found["uniform"] == (1.0, 0.0)


# What was selected.


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 3.0])
def test_the_collapse_law_is_what_selection_by_rank_leaves(beta):
    n, altered = 100_000, 0.45
    rank = (np.arange(n) + 0.5) / n  # the altered have the highest losses
    chosen = rank**beta
    share = chosen[rank > 1 - altered].sum() / chosen.sum()
    assert 1 - measures.right_after_selection(1 - altered, beta) == pytest.approx(share, abs=1e-4)


def test_the_law_is_set_beside_what_was_measured():
    lines = [
        *uniforms("labels", 0.5),
        *(made("labels", 0.5, "SB", THIRD, seed, [50.0, 40.0, 30.0, 15.0 + seed]) for seed in range(2)),
        made("labels", 0.5, "guarded SB", THIRD, 0, [50.0, 12.0], altered_share=0.125),
        made("clean", 0.0, "SB", THIRD, 0, [50.0, 12.0]),
    ]
    (found,) = selection.law(Results(lines))
    right = 1 - 0.5 * (1 - 1 / 4)  # of four classes a quarter of the random labels is right
    assert found["right"] == pytest.approx(right)
    assert found["predicted"] == pytest.approx(1 - right**3)
    assert found["survives"] == (right**3 > 1 / 4) is False
    assert found["relative"] == pytest.approx(15.5 / 10)
    assert found["late"] == pytest.approx(1.0)
    assert found["measured"] == pytest.approx((1 / 4 + 1) / 2, abs=0.01)
    assert found["guarded measured"] == 0.125
    assert (found["accuracy"], found["uniform_accuracy"]) == (84.5, 90.0)
    (gauss,) = selection.law(Results([made("gauss", 0.25, "SB", 0.5, 0, [9.0, 9.0])]))
    assert (gauss["right"], gauss["survives"], gauss["relative"]) == (0.75, None, None)


@pytest.mark.parametrize(
    ("kind", "level", "survives"),
    [
        ("labels", 0.25, True),  # 0.8125^2 > 1 / 4
        ("symmetric", 0.49, True),  # 0.51^2 > 1 / 4
        ("symmetric", 0.51, False),
        ("pair", 0.25, True),  # 0.75^2 > 1 / 2
        ("pair", 0.3, False),
        ("shuffle", 0.5, None),
    ],
)
def test_the_right_label_survives_while_it_is_the_most_frequent_one(kind, level, survives):
    (found,) = selection.law(Results([made(kind, level, "SB", 0.5, 0, [9.0, 9.0])]))
    assert found["survives"] is survives


def test_other_learning_rates_are_nowhere_but_in_their_own_table():
    lines = [
        *uniforms(),
        *uniforms("labels", 0.5),  # without other rates
        *(made("clean", 0.0, "uniform", 1.0, seed, [50.0, 20.0 + 2 * seed], 2.0) for seed in range(2)),
    ]
    results = Results(lines)
    found = [(r["row"], r["error"], r["low"], r["high"], r["seeds"]) for r in selection.rates(results)]
    third = made("clean", 0.0, "uniform", 1.0, 2, [50.0, 1.0])  # a seed that the other rate does not have
    assert [r["error"] for r in selection.rates(Results([*lines, third]))] == [10.0, 21.0]
    assert found == [("uniform", 10.0, 10.0, 10.0, 2), ("uniform, learning rate x 2", 21.0, 20.0, 22.0, 2)]
    assert not any("learning rate" in r["row"] for r in (*errors.by_seed(results, "clean"), *errors.costs(results)))
    assert speed.uniform_curve(results, "clean", 0) == [(250, 18.0), (500, 14.0), (1000, 10.0)]


# Claims.


def test_claims_are_judged_by_the_means_of_their_runs():
    lines = [
        *uniforms("labels", 0.5),
        *(made("labels", 0.5, "random subset", THIRD, seed, [50.0, 16.0]) for seed in range(2)),
        *(made("labels", 0.5, "SB", THIRD, seed, [50.0, 12.0 + 2 * seed]) for seed in range(2)),
        guarded("labels", 0.5, 0, 15.5, auroc=0.98, precision=None, recall=0.0),
        guarded("labels", 0.5, 1, 15.5, {"unaltered": 0.1}, auroc=0.96, precision=0.9, recall=0.9),
        *(made("labels", 0.5, "VR", THIRD, seed, [50.0, 12.0], scored=200 + 200 * seed) for seed in range(3)),
        *(made("labels", 0.5, "InfoBatch", 1.0, seed, [50.0, 9.0]) for seed in range(2)),
        made("labels", 0.5, "guarded InfoBatch", 1.0, 1, [50.0, 8.5]),
    ]
    records = judged(lines)
    assert {record["column"] for record in records} == {"labels 50"}
    found = [(r["claim"], r["bar"], r["measured"], r["worst"], r["verdict"]) for r in records]
    guard, at_random = "guarded SB 33 %", "error minus that of random subset 33 %"
    assert found == [
        ("SB 33 %: error over uniform's", "at least 1.3", pytest.approx(1.3), 1.2, "met"),
        ("VR 33 %: error over uniform's", "at most 1.1", pytest.approx(1.2), 1.2, "missed"),
        (f"{guard}: {at_random}", "at most 0.3", -0.5, -0.5, "met"),
        (f"{guard}: {at_random}", "at most -0.5", -0.5, -0.5, "met"),
        (f"{guard}: error minus that of SB 33 %", "below 0", 2.5, 3.5, "missed"),
        (f"{guard}: AUROC", "at least 0.97", pytest.approx(0.97), 0.96, "met"),
        (f"{guard}: precision", "at least 0.85", 0.45, 0.0, "missed"),
        (f"{guard}: recall", "at least 0.8", 0.45, 0.0, "missed"),
        (f"{guard}: share of the unaltered set aside", "at most 0.05", 0.05, 0.1, "met"),
        ("VR 33 %: share of what is offered that it selects from", "at most 0.5", pytest.approx(0.4), 0.6, "met"),
        ("guarded InfoBatch: error minus that of InfoBatch", "below 0", -0.5, -0.5, "met"),
    ]
    assert {(r["runs"], r["wanted"]) for r in records} == {(1, 6), (2, 6), (3, 6)}
    text = findings.bars(study(lines)).text
    assert "was made: 5 met, 4 missed, 1 open (9 of the 9 judged with fewer runs than they are to rest on)." in text
    assert "columns: 2 met, 6 open (2 of the 2 judged with" in text
    ends = "-2.391 to 3.291"  # 0 and 0.9, and Student's t of one degree of freedom
    assert f"| {guard}: precision | labels 50 | at least 0.85 | 0.450 | {ends} | 0.000 | 2 of 6 | **missed** |" in text
    assert "This is another study than paper-small." in text
    assert "\n- guarded InfoBatch: AUROC at least 0.97: labels 50" in text


def quick():
    """A study of a preset with a run of it, and all columns that the preset does not have open."""
    preset = PRESETS["quick"]
    result = made("labels", 0.5, "SB", THIRD, 0, [50.0, 12.0])["result"]
    return study([line(preset.protocol, Cell("labels", 0.5, "uniform", 1.0, 0), result)])


def test_claims_are_about_the_columns_that_the_preset_or_the_folder_has():
    def columns(whole):
        return {record["column"] for record in claims.judged(whole, EVERY)}

    assert columns(quick()) == {"clean", "labels 50", "gauss 50", "rare 2"}
    assert columns(study([made("labels", 0.25, "uniform", 1.0, 0, UNIFORM)])) == {"labels 25"}
    assert columns(study([], [made("clean", 0.0, "uniform", 1.0, 0, UNIFORM)])) == {"clean"}


EVERY = claims.BEFORE + claims.ADDED


def judged(lines, timed=None):
    """The claims that are not open."""
    return [record for record in claims.judged(study(lines, timed), EVERY) if record["verdict"] != "open"]


def test_what_is_set_aside_is_that_of_the_worst_epoch():
    (found,) = judged([guarded("shuffle", 0.5, 0, 5.0, {"all": 0.02}, recall=0.0)])
    assert (found["measured"], found["verdict"]) == (0.02, "missed")


def test_a_claim_without_runs_or_of_a_guard_that_has_not_decided_is_open():
    run = guarded("labels", 0.5, 0, 5.0, auroc=0.99, precision=0.9, recall=0.9)
    seen = [r["claim"] for r in judged([run])]
    assert len(seen) == 4
    run["result"]["guard"]["verdict"] = "undecided"
    assert judged([run]) == []
    others = [guarded("labels", 0.5, seed, 5.0, auroc=0.99, precision=0.9, recall=0.9) for seed in (1, 2)]
    assert [(r["claim"], r["runs"]) for r in judged([run, *others])] == [(claim, 2) for claim in seen]
    unknown = guarded("labels", 0.5, 0, 5.0, auroc=None, precision=0.9, recall=0.9)
    assert [r["claim"] for r in judged([unknown])] == [claim for claim in seen if "AUROC" not in claim]
    assert {r["verdict"] for r in claims.judged(quick(), EVERY)} == {"open"}
    assert claims.judged(study([]), EVERY) == []


def test_the_claims_are_those_that_the_study_was_made_for():
    """One line a claim: what, in which columns, and its bar. To be changed only with the claim itself."""
    labels, shuffled = ("labels 25", "labels 50"), ("shuffle 25", "shuffle 50")
    noisy, half = (*labels, "gauss 25", "gauss 50"), ("labels 50", "gauss 50")
    guard, subset = "guarded SB 33 %", "random subset 33 %"

    def of_the_guard(row, other):
        return [
            (f"{row}: error minus that of {other}", ("clean", *shuffled), "at most 0.3", 6),
            (f"{row}: error minus that of {other}", half, "below 0", 6),
            (f"{row}: AUROC", labels, "at least 0.97", 6),
            (f"{row}: precision", labels, "at least 0.85", 6),
            (f"{row}: recall", labels, "at least 0.8", 6),
            (f"{row}: share of the unaltered set aside", labels, "at most 0.05", 6),
            (f"{row}: share of all set aside", ("clean", *shuffled), "at most 0.01", 6),
        ]

    def told(bars):
        return [(bar.claim, bar.columns, bar.bar, bar.seeds) for bar in bars]

    assert told(claims.BEFORE) == [
        ("SB 33 %: error minus uniform's", ("clean",), "at most 0.5", 6),
        ("SB 33 %: error over uniform's", ("labels 50",), "at least 1.3", 6),
        ("VR 33 %: error over uniform's", labels, "at most 1.1", 6),
        (f"{guard}: error minus that of {subset}", None, "at most 0.3", 6),
        (f"{guard}: error minus that of {subset}", ("clean", "labels 50"), "at most -0.5", 6),
        *of_the_guard(guard, "SB 33 %"),
        (f"{guard}: balanced error minus that of SB 33 %", ("rare 2",), "at most 1", 6),
        (f"{guard}: balanced error minus that of {subset}", ("rare 2",), "at most 1", 6),
        ("choosing: share of a run's seconds", None, "at most 0.01", 1),
    ]
    assert told(claims.ADDED) == [
        ("VR 33 %: error over uniform's", noisy[2:], "at most 1.1", 6),
        ("VR 33 %: share of what is offered that it selects from", noisy, "at most 0.5", 6),
        ("VR 50 %: error over uniform's", noisy, "at most 1.1", 6),
        ("VR 50 %: share of what is offered that it selects from", noisy, "at most 0.5", 6),
        *of_the_guard("guarded InfoBatch", "InfoBatch"),
    ]
    assert [bar.claim for bar in EVERY if bar.every] == ["choosing: share of a run's seconds"]


def test_the_preset_has_as_many_seeds_as_each_claim_is_to_rest_on():
    cells = PRESETS["paper-small"].cells()
    have = {(cell.column, cell.row, cell.seed) for cell in cells}
    columns = {cell.column for cell in cells}
    for bar in EVERY:
        rows = {cell.row for cell in cells if cell.row in bar.claim}
        assert rows or "choosing" in bar.claim
        for column in bar.columns or columns:
            assert all((column, row, seed) in have for row in rows for seed in range(bar.seeds)), (bar.claim, column)


@pytest.mark.parametrize(("level", "bar"), [(0.98, True), (0.5, False), (0.0, False), (1.0, False)])
def test_of_rare_classes_the_balanced_error_is_shown_at_every_level_and_judged_where_2_percent_are_kept(level, bar):
    lines = [
        *uniforms("rare", level),
        made("rare", level, "SB", THIRD, 0, [50.0, 12.0]),
        guarded("rare", level, 0, 12.5),
    ]
    results = Results(lines)
    column = f"rare {100 * (1 - level):.0f}"
    assert results.columns == [column]
    assert results.altered_share(column) == 0.0
    names = [column, f"{column}, balanced", f"{column}, the rare classes"]
    assert [name for name, _ in sections._measures(results, column)] == names
    for run in lines:
        run["result"]["class_errors"] = [run["result"]["error"]] * 4
    assert [name for name, _ in sections._measures(Results(lines), column)] == names[::2]
    found = [(r["claim"], r["measured"]) for r in judged(lines) if "balanced" in r["claim"]]
    assert found == ([("guarded SB 33 %: balanced error minus that of SB 33 %", 0.5)] if bar else [])


def test_of_two_lines_of_a_run_the_later_one_counts():
    lines = [made("clean", 0.0, "uniform", 1.0, seed, [50.0, error]) for seed, error in ((0, 9.0), (1, 8.0), (0, 7.0))]
    results = Results(lines)
    assert [run["error"] for run in results.of("clean", "uniform")] == [7.0, 8.0]
    assert [line["result"]["error"] for line in results.lines] == [7.0, 8.0]


def test_choosing_is_judged_by_the_worst_timed_run():
    timed = [made("clean", 0.0, method, 1.0, 0, UNIFORM) for method in ("uniform", "IES")]
    for run, share in zip(timed, (0.004, 0.02), strict=True):
        run["result"]["seconds"] = dict.fromkeys(speed.PARTS, 0.0) | {"choosing": share, "backward": 1 - share}
    (found,) = judged([], timed)
    assert (found["measured"], found["verdict"], found["runs"]) == (pytest.approx(0.02), "missed", 2)
    assert (found["worst"], found["low"], found["high"]) == (found["measured"], None, None)
    untimed = made("clean", 0.0, "SB", 0.5, 0, UNIFORM)  # a row of the column that is not known to be any better
    assert judged([untimed], timed) == []


@pytest.mark.parametrize(
    ("bar", "value", "met"),
    [
        ({"at_most": 0.3}, 0.3 + 1e-14, True),
        ({"at_most": 0.3}, 0.31, False),
        ({"at_least": 1.3}, 1.3, True),
        ({"at_least": 1.3}, 1.29, False),
        ({"below": 0.0}, -1e-14, False),
        ({"below": 0.0}, -0.01, True),
    ],
)
def test_a_bar_is_met_on_its_side_whatever_rounding_adds(bar, value, met):
    assert claims.Bar("", lambda study, column: None, **bar).met(value) is met
