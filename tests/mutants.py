"""Faults put in on purpose, and for each the test that must fail of it: ``python tests/mutants.py`` prints the table.

A mutant is a copy of the sources in which a text that stands there once is replaced by another. Nothing of it is in the
sources themselves. ``test_mutants.py`` builds the copies and runs the tests.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from fastprio import _core

ROOT = Path(__file__).parents[1]
PARTS = ("fastprio", "csrc", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")


class Mutant(NamedTuple):
    """A fault: what it is in words, the test that notices, and the edits that make it, (file, right, wrong) each."""

    fault: str
    caught_by: str
    edits: tuple[tuple[str, str, str], ...]


def mutant(fault, caught_by, *edits):
    """One, of edits [file, right, wrong, file, right, wrong, ...]."""
    return Mutant(fault, caught_by, tuple(zip(edits[::3], edits[1::3], edits[2::3], strict=True)))


MUTANTS = [
    mutant(
        "A search takes < for <= at one of a node's sixteen borders",
        "test_exactness.py::test_all_subsets_of_a_node_are_searched_right",
        "csrc/baseline.h",
        "node[child + 4] <= r ? 4 : 0",
        "node[child + 4] < r ? 4 : 0",
    ),
    mutant(
        "A search skips a level of the tree",
        "test_exactness.py::test_every_leaf_owns_exactly_its_mass",
        "csrc/loops.h",
        "for (int k = tree.level_count - 1; k > 0; --k, from = rest)",
        "for (int k = tree.level_count - 1; k > 1; --k, from = rest)",
    ),
    mutant(
        "Of duplicates in an update the first wins",
        "test_exactness.py::test_the_last_of_duplicates_wins",
        "csrc/sum_tree.cpp",
        "after[j] = priority_bits(priorities[first + j]);",
        "after[j] = priority_bits(priorities[first + size_t(std::find(at, at + j, at[j]) - at)]);",
    ),
    mutant(
        "An integer below a bound is a word modulo the bound, nothing is rejected",
        "test_random_bits.py::test_bounded_integers_equal_the_reference_where_words_are_rejected",
        "csrc/bounded.h",
        "  W product = W(word) * bound;",
        "  return Word(word % bound);\n  W product = W(word) * bound;",
    ),
    mutant(
        "Uniform numbers have 24 bits",
        "test_schemes.py::test_every_sequence_equals_the_reference",
        "csrc/schemes.cpp",
        "r[j] = uniform(begin + j, r[j]);",
        "r[j] = uniform(begin + j, r[j] >> 40 << 40);",
    ),
    mutant(
        "Sums are kept in float32",
        "test_exactness.py::test_every_leaf_owns_exactly_its_mass",
        "csrc/loops.h",
        "    level[b] = before;",
        "    level[b] = uint64_t(float(before));",
    ),
    mutant(
        "Masses are rounded half up, not half to even",
        "test_exactness.py::test_mass_is_the_definition_in_fractions",
        "csrc/mass.h",
        "whole + (rest + (whole & 1) > half)",
        "whole + (rest >= half)",
        "csrc/mass.h",
        "(significand + (half - 1) + odd) >> places",
        "(significand + half) >> places",
    ),
    mutant(
        "A small priority above zero has no mass",
        "test_zero.py::test_everything_above_zero_can_be_drawn",
        "csrc/mass.h",
        "return uint32_t(rounded) | ((rounded == 0) & (std::bit_cast<uint32_t>(priority) != 0));",
        "return uint32_t(rounded);",
    ),
    mutant(
        "Every batch of an epoch begins the stream of random bits anew",
        "test_schemes.py::test_calls_may_be_split",
        "csrc/schemes.cpp",
        "const uint64_t begin = request.offset + first;",
        "const uint64_t begin = first;",
    ),
    mutant(
        "All epochs have the same random bits",
        "test_schemes.py::test_seed_epoch_and_offset_belong_to_the_sequence",
        "csrc/philox.h",
        "uint32_t(number >> 32), stream.epoch,",
        "uint32_t(number >> 32), 0,",
    ),
    mutant(
        "What a thread draws depends on where its part of a call begins",
        "test_threads.py::test_draws_are_the_same",
        "csrc/schemes.cpp",
        "    part.offset += first;",
        "    part.offset += first;\n    part.seed += first;",
    ),
    mutant(
        "Strata are handed out in sorted order",
        "test_statistics.py::test_batches_and_slices_of_a_class_sorted_data_set_hold_many_classes",
        "csrc/schemes.cpp",
        "const uint64_t k = order[place + m],",
        "const uint64_t k = place + m,",
    ),
    mutant(
        "An update puts mass under an example that is parked",
        "test_schemes.py::test_an_update_while_parked_counts_from_the_next_epoch",
        "csrc/sum_tree.cpp",
        "if (parked_bits_[at[j] >> 3] >> (at[j] & 7) & 1) deltas[j] = 0;",
        "(void)j;",
    ),
    mutant(
        "An epoch's importance weights are those of the epoch before",
        "test_step.py::test_beta_goes_linearly_over_all_epochs",
        "fastprio/epochs.py",
        "        store.begin_epoch(number)\n",
        "        store.begin_epoch(max(number - 1, 0))\n",
    ),
    mutant(
        "A draw that was consumed before a resume is issued again",
        "test_resume.py::test_batches_consumed_in_any_order_are_not_issued_again",
        "fastprio/resume.py",
        "or (entry.consumed == len(entry.indices) and not replay)",
        "or False",
    ),
    mutant(
        "A draw is consumed twice: a step leaves its batch outstanding",
        "test_loader.py::test_every_loss_is_credited_to_the_example_it_came_from",
        "fastprio/journal.py",
        "            if self._whole:\n                draws.consumed += count\n",
        "            if self._whole:\n                draws.consumed += count if draws.number else 0\n",
    ),
    mutant(
        "The unseen count as of loss zero",
        "test_policies.py::test_the_unseen_get_the_largest_loss_raised_once",
        "fastprio/policies/loss_power.py",
        'power(float(self.state["largest"][0]), self.alpha)',
        "power(self.eps, self.alpha)",
    ),
    mutant(
        "The unseen rank last by loss",
        "test_policies_loss.py::test_ranks_go_from_the_largest_loss_down_after_those_never_scored",
        "fastprio/policies/primitives.py",
        "return np.where(seen, values, np.float32(np.inf))",
        "return np.where(seen, values, np.float32(0))",
    ),
    mutant(
        "Ranks that draw from shards of their own share a counter",
        "test_shards.py::test_every_rank_has_random_numbers_of_its_own",
        "fastprio/epochs.py",
        "_core.word(now.seed, now.share.rank, _core.Purpose.shard, 0, 0)",
        "_core.word(now.seed, 0, _core.Purpose.shard, 0, 0)",
    ),
    mutant(
        "The state of training is where the loader has read to",
        "test_resume.py::test_a_batch_that_was_yielded_and_not_stepped_when_saving_comes_again",
        "fastprio/epochs.py",
        "position = oldest.first + oldest.consumed * oldest.share.ranks",
        "position = epoch.position",
    ),
    mutant(
        "Losses are applied a batch earlier than the lag says",
        "test_lag.py::test_every_lag_without_workers_is_that_of_the_definition",
        "fastprio/epoch.py",
        "self._feedback.apply(self.batches - 1 - self._lag)",
        "self._feedback.apply(self.batches - self._lag)",
    ),
    mutant(
        "A file is saved without a sync",
        "test_crash.py::test_after_a_loss_of_power_the_file_is_the_old_or_the_new_one_and_the_new_one_once_it_is_saved",
        "fastprio/_file.py",
        "            os.fsync(file.fileno())\n",
        "",
    ),
    mutant(
        "A file is renamed before it is synced",
        "test_crash.py::test_after_a_loss_of_power_the_file_is_the_old_or_the_new_one_and_the_new_one_once_it_is_saved",
        "fastprio/_file.py",
        "            os.fsync(file.fileno())\n        os.replace(beside, target)\n",
        "            os.replace(beside, target)\n            os.fsync(file.fileno())\n",
    ),
    mutant(
        "The checksum leaves out the header",
        "test_file.py::test_every_flipped_bit_is_refused",
        "fastprio/_file.py",
        "checksum = zlib.crc32(piece, checksum)\n",
        "checksum = zlib.crc32(piece, checksum) if not isinstance(piece, bytes) else 0\n",
        "fastprio/_file.py",
        "    entries = _entries(header, length - 8 - size)\n",
        "    checksum = 0\n    entries = _entries(header, length - 8 - size)\n",
    ),
    mutant(
        "A file may be longer than its header says",
        "test_file.py::test_trailing_bytes_are_refused",
        "fastprio/_file.py",
        "    if begin != length:\n",
        "    if begin > length:\n",
    ),
    mutant(
        "A store is made as large as a file says, whatever the file has",
        "test_hostile.py::test_a_file_that_says_it_is_large_is_refused_before_anything_of_that_size_is_made",
        "fastprio/snapshot.py",
        "    if size != n:\n",
        "    if False:\n",
    ),
    mutant(
        "A forked child inherits a lock that is held",
        "test_forks.py::test_a_child_can_use_what_a_thread_of_its_parent_held_locked",
        "fastprio/_locks.py",
        "            setattr(owner, attribute, threading.RLock())\n",
        "            pass\n",
    ),
]


def copied(to):
    """A copy of the sources, and of the extension as it is built, in the folder ``to``; returns it."""
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, to / part, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / part, to / part)
    shutil.copy(_core.__file__, to / "fastprio")
    return to


def apply(edits, to):
    """Makes the edits in a copy, and builds the extension anew if they are of its sources."""
    for name, right, wrong in edits:
        text = (to / name).read_text()
        assert text.count(right) == 1, f"{name}: {right!r} is there {text.count(right)} times"
        (to / name).write_text(text.replace(right, wrong))
    if any(name.startswith("csrc/") for name, _, _ in edits):
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=to, env={**os.environ, "FASTPRIO_DEBUG": "1"}, check=True)


def run(to, *tests):
    """pytest on a copy: its exit status, and what it said."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
    environment = {**os.environ, "PYTHONPATH": str(to), "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=to, env=environment, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout + done.stderr


def table():
    """The mutants, as a page."""
    rows = [
        f"| {m.fault} | {', '.join(dict.fromkeys(f'`{name}`' for name, _, _ in m.edits))} | `{m.caught_by}` |"
        for m in MUTANTS
    ]
    return "\n".join(
        [
            "# Mutants",
            "",
            "<!-- Made by `python tests/mutants.py`; do not edit. -->",
            "",
            "Faults that are put into a copy of the sources, one at a time, and the test that then fails:",
            "`pytest -m long tests/test_mutants.py` makes them and runs it, in five minutes.",
            "",
            "| fault | in | caught by |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    print(table(), end="")
