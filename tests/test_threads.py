"""Promise: the same bits for any number of threads; none outlives its call; none is needed."""

import hashlib
import os
import subprocess
import sys
import sysconfig
import textwrap
import warnings

import numpy as np
import pytest
from helpers import ISAS, filled, generator, state, using

import fastprio
from fastprio import _core
from fastprio.tree import SumTree

LEAST = 500  # items a thread in most tests here, so that small trees use threads
THREADS = [2, 3, 8]
NOTHING = np.empty(0, np.uint8)
has_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc here")


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = fastprio.get_num_threads()
    yield
    fastprio.set_num_threads(before)
    _core.set_least_per_thread(0)


def for_each_number(run, least=LEAST):
    """What ``run`` gives on one thread, after every number has given the same."""
    _core.set_least_per_thread(least)
    fastprio.set_num_threads(1)
    expected = run()
    for n in THREADS:
        fastprio.set_num_threads(n)
        assert run() == expected, f"{n} threads"
    return expected


def digest(*arrays):
    h = hashlib.sha256()
    for array in arrays:
        h.update(np.ascontiguousarray(array).tobytes())
    return h.hexdigest()


def priorities_of(n, seed=1):
    rng = generator(seed)
    p = rng.lognormal(sigma=3, size=n).astype(np.float32)
    p[rng.integers(0, n, n // 5)] = 0
    p[rng.integers(0, n, n // 20)] = -0.0
    p[-1] = 0.5
    return p


SIZES = [1, 15, 16, 17, 255, 257, 999, 1000, 1001, 1023, 1024, 1025, 4095, 4096, 4097, 8191, 8193, 30_001]


@pytest.mark.parametrize("n", SIZES)
def test_trees_are_the_same(n):
    p = priorities_of(n)

    def run():
        states = []
        tree = SumTree(n)
        tree.fill(p)
        states.append(state(tree))
        tree.update([n // 2], [np.float32(1e12)])  # another scale, so all sums anew
        states.append(state(tree))
        tree.update([n // 2], [1.0])
        states.append(tree.refit_gain())
        tree.refit()
        states.append(state(tree))
        tree.sample(min(n // 2, 20), seed=3, scheme="epoch")
        tree.update([n // 3], [np.float32(1e20)])  # all sums anew, without what is parked
        states.append(state(tree))
        twin = SumTree(n)
        twin.fill(iter([p[: n // 3], p[n // 3 :]]))
        states.append(state(twin))
        tree.fill(2.5)
        states.append(state(tree))
        tree.restore(p, 1e6)
        return [*states, state(tree)]

    for_each_number(run)


@pytest.mark.parametrize("isa", ISAS, ids=str)
def test_trees_are_the_same_on_every_instruction_set(isa):
    p = priorities_of(30_001)
    with using(isa):
        got = for_each_number(lambda: state(filled(p)))
    assert got == state(filled(p))


COUNTS = [0, 1, 255, 257, 999, 1000, 1001, 2500, 9973]


@pytest.mark.parametrize("count", COUNTS)
def test_what_is_found_is_the_same(count):
    tree = filled(priorities_of(5000))
    masses = generator(2).integers(0, tree.total, count)
    for_each_number(lambda: digest(tree.find(masses)))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("scheme", ["iid", "stratified", "systematic", "unique"])
@pytest.mark.parametrize("group", [1, 7, 256, 600, 5000, None])
def test_draws_are_the_same(count, scheme, group):
    tree = filled(np.maximum(priorities_of(20_000), np.float32(1e-3)))
    rng = generator(3)
    for _ in range(3):
        b, offset = group or max(count, 1), int(rng.integers(0, 2**40))
        offset -= offset % b if scheme == "unique" else 0

        def run(offset=offset):
            return digest(*tree.sample(count, seed=4, epoch=5, offset=offset, scheme=scheme, group=group))

        for_each_number(run)


@pytest.mark.parametrize("skipped", [None, 0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 9_000, 20_001, 50_000])
def test_walks_are_the_same_and_stop_at_the_same_place(count, skipped):
    n = 20_001
    skip = NOTHING
    if skipped is not None:
        skip = np.packbits(generator(4).random(n) < skipped, bitorder="little")
    for position in (0, 1, 7_000, n - 1, n, n + 1):

        def run(position=position):
            out = np.full(count, -1)
            taken, following = _core.walk(n, 6, 7, _core.Purpose.cover, position, skip, out)
            return taken, following, digest(out[:taken])

        for_each_number(run)


def test_nothing_changes_at_the_measured_thresholds_either():
    n = 2**20 + 17
    p = priorities_of(n)

    def run():
        tree = filled(p)
        masses = generator(5).integers(0, tree.total, 2**15 + 1)
        draws = [tree.sample(2**15 + 1, seed=1, scheme=s, group=256) for s in ("iid", "stratified", "unique")]
        out = np.empty(2**15 + 1, np.int64)
        walked = _core.walk(n, 1, 2, _core.Purpose.plan, 3, NOTHING, out)
        return state(tree), digest(tree.find(masses), *sum(draws, ()), out), walked

    for_each_number(run, least=0)


# Errors.


@pytest.mark.parametrize("bad", [[0], [9_999], [7_321, 2_500, 2_499], [5_000, 9_998], list(range(3, 10_000, 700))])
def test_the_first_bad_position_is_named_and_nothing_changes(bad):
    n = 10_000
    tree = filled(priorities_of(n))
    before, p = state(tree), priorities_of(n, seed=6)
    p[bad] = np.where(np.arange(len(bad)) % 2, -1.0, np.inf)
    masses = np.zeros(n, np.int64)
    masses[bad] = tree.total + np.array(bad)

    def message(call):
        with pytest.raises(ValueError, match=rf"\[{min(bad)}\] = ") as error:
            call()
        assert state(tree) == before
        return str(error.value)

    pieces = [p[:6000], p[6000:]]
    for_each_number(lambda: [message(lambda: tree.fill(p)), message(lambda: tree.fill(iter(pieces)))])
    for_each_number(lambda: message(lambda: tree.find(masses)))


def test_the_first_draw_that_finds_nothing_left_is_named():
    p = np.zeros(3000, np.float32)
    p[::30] = 1
    tree = filled(p)

    def run():
        with pytest.raises(ValueError, match="draw 100 of this call finds nothing left") as error:
            tree.sample(3000, seed=1, scheme="unique", group=101)
        return str(error.value)

    for_each_number(run)


@pytest.mark.parametrize("n", [0, -1, 1025, 2**40, 2**80])
def test_a_number_of_threads_out_of_range_is_refused(n):
    with pytest.raises(ValueError, match=rf"n = {n}: expected an integer in \[1, 1024\]"):
        fastprio.set_num_threads(n)
    with pytest.raises(TypeError, match=r"n = 1\.5: expected an integer"):
        fastprio.set_num_threads(1.5)


# The number. Each in a process of its own.


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_a_malformed_variable_is_an_error_that_names_it_until_it_is_well_formed():
    code = """
    import os
    import fastprio
    for value in ("0", "-3", "two", "3 ", "1.5", "1025", "99999999999999999999"):
        os.environ["FASTPRIO_NUM_THREADS"] = value
        for call in (fastprio.get_num_threads, lambda: fastprio.SumTree(5)):
            try:
                call()
            except ValueError as error:
                assert str(error) == f"FASTPRIO_NUM_THREADS = '{value}': expected an integer in [1, 1024]"
            else:
                raise AssertionError(value)
    os.environ["FASTPRIO_NUM_THREADS"] = "5"
    print(fastprio.get_num_threads(), len(fastprio.SumTree(5)))
    os.environ["FASTPRIO_NUM_THREADS"] = "6"  # it has been read
    print(fastprio.get_num_threads())
    fastprio.set_num_threads(7)
    print(fastprio.get_num_threads())
    """
    assert run_python(code) == ["5 5", "5", "7"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_by_default_the_number_is_that_of_the_cores_this_process_may_use():
    code = """
    import os
    import fastprio
    assert fastprio.get_num_threads() == len(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    assert fastprio.get_num_threads() == 1
    """
    assert run_python(code, FASTPRIO_NUM_THREADS="") == []


# Threads live no longer than their call.

COUNT = """
    import os, threading, time
    def tasks():
        return len(os.listdir("/proc/self/task"))
    def most_during(call):
        '''The most threads at a time while ``call`` runs, but for the one that counts.'''
        seen, over = [0], threading.Event()
        def watch():
            while not over.is_set():
                seen[0] = max(seen[0], tasks() - 1)
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            call()
        finally:
            over.set()
            watcher.join()
        return seen[0]
    def again(n):
        '''Whether as many are left; the system may still be clearing one away that has ended.'''
        end = time.monotonic() + 20
        while tasks() != n and time.monotonic() < end:
            time.sleep(0.01)
        return tasks() == n
    import numpy as np, torch, numba
"""


@has_proc
def test_importing_and_small_calls_start_no_thread():
    code = (
        COUNT
        + """
    before = tasks()
    import fastprio
    from fastprio import _core
    assert tasks() == before
    fastprio.set_num_threads(8)
    tree = fastprio.SumTree(100_000)
    def small():
        for k in range(200):
            tree.fill(1.0)
            tree.update(np.arange(256), np.full(256, 2.0 ** k % 1e30))
            tree.sample(256, seed=k, scheme="stratified")
            tree.find(np.arange(256))
            tree.refit()
    assert most_during(small) == before
    assert again(before)
    large = fastprio.SumTree(1 << 23)  # the control
    assert before < most_during(lambda: [large.fill(1.0) for _ in range(20)]) <= before + 7
    assert again(before)
    print("ok")
    """
    )
    assert run_python(code) == ["ok"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_can_use_threads_after_its_parent_has():
    _core.set_least_per_thread(LEAST)
    fastprio.set_num_threads(4)
    p = priorities_of(20_000)
    tree = filled(p)
    expected = state(tree), digest(*tree.sample(5000, seed=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            same = (state(tree), digest(*tree.sample(5000, seed=1))) == expected
            tree.fill(p)
            status = 0 if same and state(tree) == expected[0] else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@has_proc
def test_without_threads_to_be_had_the_caller_does_the_work():
    code = (
        COUNT
        + """
    import hashlib, resource
    import fastprio
    from fastprio import _core
    p = np.random.default_rng(1).random(20_000).astype(np.float32)
    tree, out = fastprio.SumTree(p.size), (np.empty(5000, np.int64), np.empty(5000))
    def run():
        tree.fill(p)
        tree.sample(5000, seed=1, scheme="stratified", group=64, out=out)
        return tree.total, out[0].tobytes(), out[1].tobytes()
    fastprio.set_num_threads(1)
    expected = run()
    fastprio.set_num_threads(8)
    _core.set_least_per_thread(500)
    # No room for another stack: 8 MB each, and none is left over from a thread that has ended.
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), resource.RLIM_INFINITY))
    try:
        threading.Thread(target=run).start()
        print("a thread started: this system cannot run the test")
    except RuntimeError:
        assert run() == expected
        print("ok")
    """
    )
    assert run_python(code) == ["ok"]


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a global interpreter lock")
def test_a_python_without_the_global_interpreter_lock_turns_it_on():
    assert sys._is_gil_enabled()  # as csrc/bind.cpp does not say that it can do without
