"""Promise, in the long run: the draws follow their laws, over 200 seeds of every scheme and shape of priorities.

A single p-value below a threshold says little among thousands. So all of them together are held to a rate of false
discoveries (Benjamini and Hochberg, 1995), none may be absurd, and those of each statistic must be uniform, which they
are only if the law and the statistic's own are right. Seeds are fixed: what passes, passes always, and nothing is tried
again until it passes. Beside it stand draws that are wrong on purpose, each of which must be noticed.
"""

import numpy as np
import pytest
from helpers import filled, generator, masses_by_definition, p_value
from scipy.stats import cramervonmises, false_discovery_control
from test_statistics import by_stratum, stratum_laws

pytestmark = pytest.mark.long

SEEDS, DRAWS, N, GROUP = 200, 5_000_000, 1000, 16
RATE = 1e-3  # of false discoveries
ABSURD = 1e-9
UNIFORM = 1e-4  # the p-value of the p-values
FEW = 20  # leaves where pairs are counted


def shape(name, n):
    rng = generator(n)
    return {
        "uniform": np.ones(n),
        "Zipf": 1 / np.arange(1, n + 1),
        "one and little": np.where(np.arange(n) == n // 3, 1.0, 1e-3 / n),
        "log-normal": rng.lognormal(sigma=2, size=n),
        "eight decades": 10.0 ** rng.uniform(-4, 4, n),
    }[name].astype(np.float32)


SHAPES = ("uniform", "Zipf", "one and little", "log-normal", "eight decades")


def law_of(tree):
    return masses_by_definition(tree.priorities, tree._core.scale) / tree.total


def marginal(drawn, law):
    return p_value(np.bincount(drawn, minlength=law.size), law * drawn.size)


def serial(drawn, law, lag=1):
    """Of pairs that are ``lag`` apart, not overlapping: their classes, of which there are about FEW alike in mass."""
    of = np.minimum((np.cumsum(law) - law / 2) * FEW, FEW - 1).astype(np.int64)
    share = np.bincount(of, law, FEW)
    first, second = of[drawn[:-lag]][:: 2 * lag], of[drawn[lag:]][:: 2 * lag]
    pairs = np.bincount(first * FEW + second, minlength=FEW * FEW)
    return p_value(pairs, np.outer(share, share).ravel() * first.size)


def nodes(drawn, law):
    """For each node of the tree, how its draws are divided among its children."""
    counts, found = np.bincount(drawn, minlength=law.size).astype(float), []
    while counts.size > 1:
        whole = -counts.size % 16
        counts, law = np.pad(counts, (0, whole)).reshape(-1, 16), np.pad(law, (0, whole)).reshape(-1, 16)
        for seen, of in zip(counts, law, strict=True):
            if seen.sum() * np.sort(of)[-2] > 100 * of.sum():  # two children that are met
                found.append(p_value(seen, of / of.sum() * seen.sum()))
        counts, law = counts.sum(1), law.sum(1)
    return found


def gaps(drawn, law):
    """Of the eight heaviest leaves: how many draws lie between two of the same."""
    found = []
    for leaf in np.argsort(law)[-8:]:
        p = law[leaf]
        between = np.diff(np.flatnonzero(drawn == leaf)) - 1
        if between.size < 1000 or p > 0.9:
            continue
        edges = np.unique(np.floor(np.log(1 - np.arange(1, 20) / 20) / np.log1p(-p)).astype(np.int64) + 1)
        tail = (1 - p) ** np.concatenate([[0], edges])  # P(gap >= edge)
        counts = np.bincount(np.searchsorted(edges, between, side="right"), minlength=edges.size + 1)
        found.append(p_value(counts, -np.diff(np.append(tail, 0)) * between.size))
    return found


def first_two(groups, law):
    """Draws 0 and 1 of each group, [k, 2]: P(i, j) = p_i p_j / (1 - p_i), without repeats."""
    pairs = np.outer(law, law) / (1 - law[:, None])
    np.fill_diagonal(pairs, 0)
    counts = np.bincount(groups[:, 0] * law.size + groups[:, 1], minlength=law.size**2)
    return p_value(counts, pairs.ravel() * len(groups))


def of_iid(name, seed, change=lambda drawn, law: drawn):
    tree = filled(shape(name, N))
    law = law_of(tree)
    drawn = change(tree.sample(DRAWS, seed=seed)[0], law)
    return {
        "marginal": [marginal(drawn, law)],
        "serial": [serial(drawn, law)],
        "serial, 32 apart": [serial(drawn, law, 32)],
        "nodes": nodes(drawn, law),
        "gaps": gaps(drawn, law),
    }


def of_strata(scheme, name, seed):
    tree = filled(shape(name, N // 5))
    drawn = tree.sample(DRAWS // GROUP * GROUP, seed=seed, scheme=scheme, group=GROUP)[0]
    columns, laws = by_stratum(drawn, GROUP), stratum_laws(tree, GROUP)
    return {  # each on its own, as those of a systematic group are drawn by one number
        f"stratum {k}": [p_value(np.bincount(columns[:, k], minlength=law.size), law * len(columns))]
        for k, law in enumerate(laws)
        if law.max() < 1
    }


def of_unique(name, seed, length=4):
    tree = filled(shape(name, FEW))
    groups = tree.sample(DRAWS // 5 * length, seed=seed, scheme="unique", group=length)[0].reshape(-1, length)
    return {"first": [marginal(groups[:, 0], law_of(tree))], "first two": [first_two(groups, law_of(tree))]}


def of_epoch(name, seed):
    tree = filled(shape(name, FEW))
    epochs = [tree.sample(2, seed=seed, epoch=epoch, scheme="epoch")[0] for epoch in range(5000)]
    tree.refit()
    return {"first two": [first_two(np.array(epochs), law_of(tree))]}


SCHEMES = {
    "iid": of_iid,
    "stratified": lambda name, seed: of_strata("stratified", name, seed),
    "systematic": lambda name, seed: of_strata("systematic", name, seed),
    "unique": of_unique,
    "epoch": of_epoch,
}


def collected(statistics, seeds):
    """Statistic -> the p-values of all seeds."""
    found = {}
    for seed in seeds:
        for name, values in statistics(seed).items():
            found.setdefault(name, []).extend(values)
    return {name: np.array(values) for name, values in found.items() if values}


def objections(found):
    """What is wrong with the p-values of several statistics, in words; empty if nothing is."""
    together = np.concatenate(list(found.values()))
    said = []
    if (discoveries := int((false_discovery_control(together) < RATE).sum())) > 0:
        said.append(f"{discoveries} of {together.size} discovered")
    if together.min() < ABSURD:
        said.append(f"p = {together.min():.1e}")
    for name, values in found.items():
        if values.size >= 100 and (p := cramervonmises(values, "uniform").pvalue) < UNIFORM:
            said.append(f"{name}: p-values are not uniform, p = {p:.1e}")
    return said


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", SHAPES)
def test_200_seeds_follow_the_law(scheme, name):
    found = collected(lambda seed: SCHEMES[scheme](name, seed), range(SEEDS))
    assert found
    assert objections(found) == []


def heavier(drawn, law):
    """One draw in 200 is replaced by its neighbour to the right."""
    return np.where(generator(1).random(drawn.size) < 0.005, np.minimum(drawn + 1, law.size - 1), drawn)


def sticky(drawn, law):
    """One draw in 200 repeats the one before it: the marginal law stays."""
    repeats = np.flatnonzero(generator(2).random(drawn.size - 1) < 0.005)
    drawn = drawn.copy()
    drawn[repeats + 1] = drawn[repeats]
    return drawn


def too_even(drawn, law):
    """Draws come as often as expected, nearly exactly: p-values that are too large are no more uniform."""
    counts = np.floor(law * drawn.size).astype(np.int64)
    rest = generator(3).choice(law.size, drawn.size - counts.sum(), p=law)
    return generator(4).permutation(np.concatenate([np.repeat(np.arange(law.size), counts), rest]))


@pytest.mark.parametrize(
    ("change", "noticed"),
    [(heavier, "discovered"), (sticky, "serial"), (too_even, "marginal: p-values are not uniform")],
)
def test_draws_that_are_wrong_are_noticed(change, noticed):
    found = collected(lambda seed: of_iid("Zipf", seed, change), range(100))
    assert noticed in str(objections(found))


def test_strata_of_the_wrong_scheme_are_noticed():
    tree = filled(shape("Zipf", N // 5))
    laws, p_values = stratum_laws(tree, GROUP), []
    for seed in range(20):
        columns = by_stratum(tree.sample(DRAWS // GROUP * GROUP, seed=seed)[0], GROUP)
        counts = [np.bincount(column, minlength=laws.shape[1]) for column in columns.T]
        p_values += [p_value(c, law * len(columns)) for c, law in zip(counts, laws, strict=True)]
    assert objections({"strata": np.array(p_values)})


def test_repeats_within_a_group_are_noticed():
    tree = filled(shape("log-normal", FEW))
    groups = tree.sample(DRAWS, seed=1)[0].reshape(-1, 4)
    assert objections({"first two": np.array([first_two(groups, law_of(tree))])})
