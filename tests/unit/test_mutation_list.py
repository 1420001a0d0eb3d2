"""The list of mutations fits the sources: its old texts stand there once, its tests exist."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from bench.mutation import Mutation
from bench.mutation_list import MUTATIONS
from bench.mutations import Outcome, judge, mutated

ROOT = Path(__file__).resolve().parents[2]
each_mutation = pytest.mark.parametrize("mutation", MUTATIONS, ids=[each.name for each in MUTATIONS])


@functools.cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@each_mutation
def test_it_can_be_applied(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text()
    changed = mutated(source, mutation)
    assert changed != source
    ast.parse(changed)


@each_mutation
def test_its_tests_exist(mutation: Mutation) -> None:
    assert mutation.tests
    for test in mutation.tests:
        path, _, name = test.partition("::")
        assert name.split("[")[0] in functions_of(path)


def test_names_are_different() -> None:
    names = [each.name for each in MUTATIONS]
    assert len(names) == len(set(names))


def test_an_old_text_must_stand_there_once() -> None:
    mutation = Mutation("one", "", "file", (("a", "b"),), ())
    assert mutated("xay", mutation) == "xby"
    for source in ("xy", "xaay"):
        with pytest.raises(ValueError, match=f"{source.count('a')} times"):
            mutated(source, mutation)


def report(*cases: str) -> str:
    return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"


def case(name: str, inside: str = "", path: str = "tests.unit.test_a") -> str:
    return f'<testcase classname="{path}" name="{name}">{inside}</testcase>'


FAILED = '<failure message="AssertionError: assert 1 == 2" />'
CRASHED = '<failure message="TypingError: no such thing" />'
NOT_RUN = '<error message="ImportError: no such module" />'
SKIPPED = '<skipped message="no" />'
NAMES = ("tests/unit/test_a.py::test_one", "tests/unit/test_a.py::test_two[b]")


@pytest.mark.parametrize(
    ("cases", "outcome"),
    [
        ([case("test_one[a]"), case("test_one[b]", FAILED), case("test_two[b]", FAILED)], Outcome.FOUND),
        ([case("test_one[a]", FAILED), case("test_two[b]")], Outcome.SURVIVED),
        ([case("test_one[a]", FAILED), case("test_two[a]", FAILED)], Outcome.BROKEN),
        ([case("test_one[a]", FAILED), case("test_two[b]", SKIPPED)], Outcome.BROKEN),
        ([case("test_one[a]", FAILED), case("test_two[b]", CRASHED)], Outcome.BROKEN),
        ([case("test_one", NOT_RUN), case("test_two[b]", FAILED)], Outcome.BROKEN),
        ([], Outcome.BROKEN),
    ],
)
def test_only_failed_assertions_of_every_named_test_count(cases: list[str], outcome: Outcome) -> None:
    assert judge(report(*cases), NAMES)[0] is outcome


def test_what_survived_is_named() -> None:
    _, text = judge(report(case("test_one", FAILED), case("test_two[b]")), NAMES)
    assert "test_two[b]" in text
    assert "test_one" not in text
