"""Promise: the tests would notice. mutants.py has the faults that they must notice."""

import ast
from pathlib import Path

import mutants
import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.fault)
def test_each_can_be_made_and_names_a_test(mutant):
    for name, right, wrong in mutant.edits:
        assert (mutants.ROOT / name).read_text().count(right) == 1
        assert right != wrong
    file, function = mutant.caught_by.split("::")
    found = ast.parse((TESTS / file).read_text()).body
    assert function in [node.name for node in found if isinstance(node, ast.FunctionDef)]


def test_the_page_is_the_list():
    assert (TESTS / "mutants.md").read_text() == mutants.table()


@pytest.mark.long
def test_without_a_fault_their_tests_pass(tmp_path):
    status, said = mutants.run(mutants.copied(tmp_path), *dict.fromkeys(m.caught_by for m in mutants.MUTANTS))
    assert status == 0, said


@pytest.mark.long
@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.fault)
def test_each_is_caught(mutant, tmp_path):
    mutants.apply(mutant.edits, mutants.copied(tmp_path))
    status, said = mutants.run(tmp_path, mutant.caught_by)
    assert status == 1 or status < 0, said  # a test failed, or the process crashed; 2 to 5 are errors of pytest's use
