"""The names of a directory's namespaces: they come back, one damaged line costs one name, a killed job none."""

from __future__ import annotations

import pytest
from memory_files import MemoryFiles

from cascade_mpi.namespaces import Namespace
from cascade_mpi.public_namespace import PublicNamespace, from_json, public
from cascade_mpi.segments import names

KINDS = [
    Namespace("a"), Namespace('q"\n, "checksum": "x', "ü\0", "bf16", "tp4"), Namespace("t", salt=b"secret"),
    Namespace(content_keys=True), Namespace("c", identity="content", hash="sha256", share_content=True),
]  # fmt: skip
ALL = {each.id: public(each) for each in KINDS}


def test_names_come_back_and_are_only_added() -> None:
    files = MemoryFiles()
    assert names.read(files) == ({}, [])
    for number, known in ALL.items():
        assert names.add(files, {number: known})
    assert names.read(files) == (ALL, [])
    writes, syncs = files.writes, files.syncs
    assert not names.add(files, ALL)
    assert not names.add(files, {})
    assert (files.writes, files.syncs) == (writes, syncs), "what is known costs no write"
    assert set(files.contents) == {"NAMES"}
    assert b"secret" not in files.contents["NAMES"]
    for each in KINDS:
        assert ALL[each.id].with_salt(each.salt) == each


def test_a_damaged_line_costs_one_name() -> None:
    files = MemoryFiles()
    names.add(files, ALL)
    whole = bytes(files.contents["NAMES"])
    lines = whole.splitlines(keepends=True)
    for at in range(0, len(whole), 7):
        files.contents["NAMES"] = bytearray(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found, problems = names.read(files)
        assert problems
        assert len(found) >= len(ALL) - 2, "two where it was the end of a line"
        assert found.items() <= ALL.items(), "never another name"
    files.contents["NAMES"] = bytearray(b"".join(lines[1:]) + lines[0][:-5])
    assert len(names.read(files).namespaces) == len(ALL) - 1
    assert names.add(files, ALL)
    assert names.read(files) == (ALL, [])


def test_a_job_that_was_killed_while_it_wrote() -> None:
    files = MemoryFiles()
    names.add(files, dict([*ALL.items()][:2]))
    files.contents["NAMES.new"] = bytearray(b"half a li")
    assert len(names.read(files).namespaces) == 2
    names.add(files, ALL)
    assert names.read(files) == (ALL, [])
    assert set(files.contents) == {"NAMES"}


def test_the_bytes_are_synced_before_the_name_and_the_name_before_the_return(monkeypatch: pytest.MonkeyPatch) -> None:
    files, steps = MemoryFiles(), []
    for name in ("create", "rename", "sync_folder"):
        call = getattr(files, name)
        monkeypatch.setattr(
            files, name, lambda *a, call=call, name=name: (steps.append((name, files.syncs)), call(*a))[1]
        )
    names.add(files, ALL)
    assert steps == [("create", 0), ("rename", 1), ("sync_folder", 1)]


def test_what_is_no_namespace() -> None:
    good = public(Namespace("a"))._asdict()
    assert from_json(good) == public(Namespace("a"))
    for wrong in (None, [], {}, good | {"name": 5}, good | {"salted": 1}, good | {"more": ""}):
        assert from_json(wrong) is None
    assert PublicNamespace(identity="other").with_salt() is None
    assert PublicNamespace("a", salted=True).with_salt() is None
    assert PublicNamespace("a").with_salt(b"x") is None
    assert str(PublicNamespace("a", "m", salted=True)) == "a/m (salted)"
    assert str(PublicNamespace(identity="other")) == "(of no kind that is known)"
