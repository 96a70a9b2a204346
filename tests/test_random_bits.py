"""Promise: random bits are Philox4x32-10, a function of (seed, epoch, purpose, number, attempt) alone, and bounded
integers and orders made of them are unbiased. What a seed gives stays the same for a whole major version."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import ISAS, generator, p_value, using

from fastprio import _core
from fastprio.reference import Permutation, Purpose, ReferenceTree, bounded, philox4x32, shuffle, walk, word, words
from fastprio.tree import SumTree

DATA = Path(__file__).parent / "data"
EMPTY = np.empty(0, np.uint8)


def core_purpose(purpose):
    return _core.Purpose[purpose.name]


def core_walk(n, seed, epoch, purpose, position, count, skip=EMPTY):
    out = np.full(count, -1)
    taken, position = _core.walk(n, seed, epoch, core_purpose(purpose), position, skip, out)
    return out[:taken].tolist(), position


def known_answers():
    lines = (DATA / "philox4x32.txt").read_text().splitlines()
    numbers = [[int(word, 16) for word in line.split()] for line in lines if not line.startswith("#")]
    return [(row[:4], row[4:6], tuple(row[6:])) for row in numbers]


@pytest.mark.parametrize(("counter", "key", "expected"), known_answers())
def test_philox_gives_the_published_answers(counter, key, expected):
    assert philox4x32(counter, key) == expected


def test_words_are_philox_under_the_documented_counter():
    """Through the core, where seed, epoch, purpose and attempt can be chosen so that an answer is a published one."""
    (_, _, zeros), _, _ = known_answers()
    for half in (0, 1):
        expected = zeros[2 * half] | zeros[2 * half + 1] << 32
        assert _core.word(0, 0, _core.Purpose.draw, half, 0) == expected == word(0, 0, Purpose.draw, half)


def test_words_equal_the_reference():
    rng = generator(1)
    edges = (0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**33 + 1, 2**63, 2**64 - 1)
    cases = list(itertools.product((0, 7, 2**64 - 1), (0, 2**32 - 1), Purpose, edges, (0, 1, 2**24 - 1)))
    for _ in range(2000):
        seed, n = (int(x) for x in rng.integers(0, 2**64, 2, dtype=np.uint64))
        epoch, attempt = int(rng.integers(0, 2**32)), int(rng.integers(0, 2**24))
        cases.append((seed, epoch, Purpose(int(rng.integers(0, 6))), n, attempt))
    for seed, epoch, purpose, n, attempt in cases:
        in_core = _core.word(seed, epoch, core_purpose(purpose), n, attempt)
        assert in_core == word(seed, epoch, purpose, n, attempt), (seed, epoch, purpose, n, attempt)


def test_no_two_uses_share_bits():
    places = itertools.product((0, 1, 2**32), (0, 1, 2), Purpose, range(4), range(4))
    seen = Counter(_core.word(s, e, core_purpose(p), n, a) for s, e, p, n, a in places)
    assert max(seen.values()) == 1
    assert len(seen) == 3 * 3 * 7 * 4 * 4


def test_the_numbers_of_the_purposes_never_change():
    assert {p.name: p.value for p in _core.Purpose} == {p.name: p.value for p in Purpose}
    assert [p.name for p in Purpose] == ["draw", "stratum", "cover", "plan", "redraw", "policy", "shard"]


@pytest.mark.parametrize("isa", ISAS)
def test_draws_read_one_word_each_from_wherever_they_begin(isa):
    """With a power-of-two total nothing is rejected, so a draw shows its word's high bits; the words come in blocks
    of two and vectors of 32, and a call may begin and end anywhere in them."""
    tree = SumTree(1024, _scale=0)
    tree.fill(1)
    with using(isa):
        for offset, count in itertools.product((0, 1, 2, 31, 32, 33, 2**33 - 5), (1, 2, 31, 32, 33, 70)):
            indices, _ = tree.sample(count, seed=5, epoch=3, offset=offset)
            assert indices.tolist() == [word(5, 3, Purpose.draw, d) >> 54 for d in range(offset, offset + count)]


def counts_of_all_words(rule):
    """For each bound of 8 bits: how often each result comes up over all 256 words, rejected ones aside."""
    for bound in range(1, 256):
        accepted = []
        for w in range(256):
            try:
                accepted.append(rule(bound, iter([w]), 8))
            except StopIteration:
                continue  # the rule asked for another word
        yield bound, Counter(accepted)


def test_bounded_gives_every_result_equally_often():
    for bound, counts in counts_of_all_words(bounded):
        assert counts == dict.fromkeys(range(bound), 256 // bound)


def test_modulo_does_not_give_every_result_equally_often():
    unequal = [
        bound
        for bound, counts in counts_of_all_words(lambda bound, w, bits: next(w) % bound)
        if len(set(counts.values())) > 1
    ]
    assert len(unequal) == 255 - 8  # all but the powers of two


def test_bounded_integers_equal_the_reference_where_words_are_rejected():
    """Bounds just above 2^63 reject almost half of all words, so later attempts count."""
    out = np.empty(300, np.uint64)
    for bound in (1, 2, 3, 10, 2**32 - 1, 2**32 + 1, 2**63 - 1, 2**63 + 1, 2**64 - 1, 3 * 2**62):
        for purpose in Purpose:
            _core.integers(bound, 11, 2, core_purpose(purpose), 17, out)
            expected = [bounded(bound, words(11, 2, purpose, 17 + j)) for j in range(out.size)]
            assert out.tolist() == expected
            assert int(out.max()) < bound
    first_words = [word(11, 2, Purpose.draw, 17 + j) for j in range(out.size)]
    rejected = sum(w * (2**63 + 1) % 2**64 < 2**64 % (2**63 + 1) for w in first_words)
    assert out.size * 0.4 < rejected < out.size * 0.6


@pytest.mark.parametrize("n", [*range(1, 41), 63, 64, 65, 100, 127, 128, 129, 1000, 4095, 4096, 4097, 65_537])
def test_permutation_visits_everything_once_and_equals_the_reference(n):
    for seed in (0, 1, 2**64 - 1):
        values, position = core_walk(n, seed, 3, Purpose.cover, 0, n + 5)
        assert sorted(values) == list(range(n))
        assert position == n
        permutation = Permutation(n, seed, 3, Purpose.cover)
        sampled = range(n) if n < 200 else range(0, n, n // 50)
        assert [values[k] for k in sampled] == [permutation(k) for k in sampled]


@pytest.mark.parametrize("n", [2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32])
def test_large_permutations_equal_the_reference(n):
    permutation = Permutation(n, 9, 1, Purpose.plan)
    for position in (0, n // 2, n - 40):
        values, end = core_walk(n, 9, 1, Purpose.plan, position, 40)
        assert values == [permutation(k) for k in range(position, position + 40)]
        assert end == position + 40
        assert len(set(values)) == 40
        assert 0 <= min(values) <= max(values) < n


def test_a_walk_resumes_anywhere_and_skips_what_is_set():
    rng = generator(2)
    for n in (1, 2, 3, 10, 37, 256, 1001):
        skipped = rng.random(n) < 0.6
        skip = np.packbits(skipped, bitorder="little")
        whole, end = core_walk(n, 4, 0, Purpose.cover, 0, n, skip)
        assert sorted(whole) == np.flatnonzero(~skipped).tolist()
        # It may stop before trailing positions that are skipped, if it has all that was asked for.
        assert core_walk(n, 4, 0, Purpose.cover, end, 5, skip) == ([], n)
        permutation = Permutation(n, 4, 0, Purpose.cover)
        assert (whole, end) == walk(permutation, 0, n, set(np.flatnonzero(skipped).tolist()))
        for step in (1, 2, 7):
            pieces, position = [], 0
            while position < n:
                piece, position = core_walk(n, 4, 0, Purpose.cover, position, step, skip)
                pieces += piece
            assert pieces == whole


def test_permutations_of_different_keys_differ():
    orders = {
        tuple(core_walk(20, seed, epoch, purpose, 0, 20)[0])
        for seed in range(10)
        for epoch in range(10)
        for purpose in (Purpose.cover, Purpose.plan)
    }
    assert len(orders) == 200


def pair_counts(order_of, n, keys):
    """How often positions 0 and 1 hold each ordered pair of values, and position n - 1 each value."""
    pairs, last = np.zeros((n, n)), np.zeros(n)
    for key in range(keys):
        order = order_of(key)
        pairs[order[0], order[1]] += 1
        last[order[-1]] += 1
    return pairs, last


@pytest.mark.parametrize("n", [2, 3, 5, 12, 16, 40])
def test_positions_and_values_of_a_permutation_pair_uniformly(n):
    """Every (position, value) pair is exactly as likely; pairs of positions only nearly so, and not at all below a
    dozen values, where a round of the network has two or four inputs."""
    keys = 60_000
    pairs, last = pair_counts(lambda key: core_walk(n, key, 0, Purpose.cover, 0, n)[0], n, keys)
    assert p_value(last, np.full(n, keys / n)) > 1e-6
    if n >= 12:
        assert p_value(pairs[~np.eye(n, dtype=bool)], np.full(n * (n - 1), keys / n / (n - 1))) > 1e-6


def test_a_mere_rotation_does_not_pair_uniformly():
    rng, n, keys = generator(3), 12, 60_000
    pairs, last = pair_counts(lambda key: np.roll(np.arange(n), rng.integers(0, n)), n, keys)
    assert p_value(last, np.full(n, keys / n)) > 1e-6  # single positions look right
    assert p_value(pairs[~np.eye(n, dtype=bool)], np.full(n * (n - 1), keys / n / (n - 1))) < 1e-6


def test_shuffle_gives_all_orders_equally_often():
    keys = 12_000
    counts = Counter(tuple(shuffle(key, 0, Purpose.stratum, 0, 4)) for key in range(keys))
    assert p_value(np.array(list(counts.values()) + [0] * (24 - len(counts))), np.full(24, keys / 24)) > 1e-6


# Golden sequences: what a seed gives must not change but in a major release. They come from reference.py.

RECIPES = {
    "equal": lambda i, n: 1.0,
    "zipf": lambda i, n: 1.0 / (1 + i),
    "holes": lambda i, n: float(i * 2654435761 % 97 * (i % 3 > 0)),
    "decades": lambda i, n: 2.0 ** (i * 7919 % 27 - 13),
}


def golden_tree(case, tree_type):
    tree = tree_type(case["size"])
    tree.fill([RECIPES[case["recipe"]](i, case["size"]) for i in range(case["size"])])
    return tree


def golden_draws(case, tree):
    keys = ("count", "seed", "epoch", "offset", "scheme", "group")
    indices, probabilities = tree.sample(**{key: case[key] for key in keys})
    return [int(i) for i in indices], [float(p).hex() for p in probabilities]


def write_golden():
    """Writes tests/data/golden.json anew: ``python tests/test_random_bits.py``. Only for a major release: every
    sequence that users have recorded changes with it."""
    cases = []
    schemes = ("iid", "stratified", "systematic", "unique", "epoch")
    for number, (recipe, scheme) in enumerate(itertools.product(RECIPES, schemes)):
        group = (7, 16, 1, 25)[number % 4]
        case = {
            "recipe": recipe, "size": (100, 257, 1000, 4099)[number % 3], "scheme": scheme, "group": group,
            "seed": 0x9E3779B97F4A7C15 * (number + 1) % 2**64, "epoch": number * 1000003 % 2**32,
            "offset": 0 if scheme == "epoch" else 3 * group + (5 if scheme in ("iid", "stratified") else 0),
            "count": 60,
        }  # fmt: skip
        case["indices"], case["probabilities"] = golden_draws(case, golden_tree(case, ReferenceTree))
        cases.append(case)
    (DATA / "golden.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


@pytest.mark.parametrize("isa", ISAS)
def test_golden_sequences_have_not_changed(isa):
    cases = json.loads((DATA / "golden.json").read_text())
    assert len(cases) == 20
    with using(isa):
        for case in cases:
            drawn = golden_draws(case, golden_tree(case, SumTree))
            assert drawn == (case["indices"], case["probabilities"]), (case["recipe"], case["scheme"])


def test_the_reference_gives_the_golden_sequences():
    for case in json.loads((DATA / "golden.json").read_text()):
        assert golden_draws(case, golden_tree(case, ReferenceTree)) == (case["indices"], case["probabilities"])


if __name__ == "__main__":
    write_golden()
