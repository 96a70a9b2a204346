"""Promise: of draws handed out one at a time, exactly those that were taken count, whoever takes and whoever cuts."""

import itertools
import threading

import numpy as np
import pytest

from fastprio import _core


@pytest.mark.parametrize("n", [0, 1, 5, 1000])
@pytest.mark.parametrize("step", [1, 3, -2])
def test_yields_the_indices_as_ints(n, step):
    indices = (np.arange(n, dtype=np.int64) * 2**33)[::step]
    singles = _core.Singles(indices)
    assert len(singles) == len(indices)
    values = list(singles)
    assert values == indices.tolist()
    assert all(type(value) is int for value in values)
    assert next(singles, None) is None
    assert singles.taken == singles.cut() == len(indices)


def test_keeps_its_indices_alive():
    singles = _core.Singles(np.arange(10**5))
    other = [np.zeros(10**5, np.int64) for _ in range(3)]  # would take the place of freed memory
    assert list(singles) == list(range(10**5))
    del other


@pytest.mark.parametrize("taken", [0, 1, 7, 9, 10])
def test_a_cut_ends_it_and_counts_what_was_taken(taken):
    singles = _core.Singles(np.arange(10))
    assert list(itertools.islice(singles, taken)) == list(range(taken))
    assert singles.taken == taken
    assert singles.cut() == taken
    assert list(singles) == []
    assert singles.cut() == singles.taken == taken  # a second cut changes nothing, nor does asking beyond the end


def test_a_cut_counts_exactly_what_another_thread_has_taken():
    for _ in range(300):
        singles, got = _core.Singles(np.arange(3000)), []

        def take(singles=singles, got=got):
            got.extend(singles)

        threads = [threading.Thread(target=take) for _ in range(2)]
        for thread in threads:
            thread.start()
        count = singles.cut()
        for thread in threads:
            thread.join()
        assert sorted(got) == list(range(count))


def test_refuses_what_is_no_int64_array():
    for wrong in (np.arange(3.0), np.arange(3, dtype=np.int32), np.zeros((2, 2), np.int64), [1, 2]):
        with pytest.raises(TypeError):
            _core.Singles(wrong)
