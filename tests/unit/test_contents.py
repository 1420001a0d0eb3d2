"""Keys of contents: fixed digests, what they depend on, and the hash function that may be missing."""

from __future__ import annotations

import hashlib
import importlib
import struct
from typing import Any

import blake3
import numpy as np
import pytest

from cascade_mpi import contents
from cascade_mpi.contents import content_key, hasher_of
from cascade_mpi.errors import NotConfiguredError
from cascade_mpi.namespaces import Namespace
from cascade_mpi.values import source

SPACE = bytes(range(16))


def key(value: Any, space: bytes = SPACE, name: Any = "blake3") -> tuple[int, int]:
    return content_key(source(value), space, name)


@pytest.mark.parametrize(("name", "function"), [("blake3", blake3.blake3), ("sha256", hashlib.sha256)])
def test_the_digest_is_of_the_head_and_the_bytes(name: str, function: Any) -> None:
    value = np.arange(6, dtype=np.uint16).reshape(2, 3)
    code = source(value).dtype
    head = b"cascade content 1".ljust(17, b"\0") + SPACE + name.encode().ljust(8, b"\0")
    head += struct.pack("<BQQQ", code, 12, 2, 3)
    digest = function(bytes([len(head)]) + head + value.tobytes()).digest()
    assert key(value, name=name) == (int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big"))


def test_what_makes_another_content() -> None:
    data = np.arange(24, dtype=np.uint8)
    values = [data, data.reshape(4, 6), data.reshape(6, 4), data.reshape(1, 24), data.view(np.int8), data[:23],
              data.view(np.uint16), data + 1, data[::-1], data[:0], data[:0].reshape(0, 4), np.zeros(24, np.uint8),
              np.zeros((), np.uint8), np.zeros(1, np.uint8), np.zeros((1,) * 8, np.uint8)]  # fmt: skip
    keys = {
        key(value, space, name) for value in values for space in (SPACE, bytes(16)) for name in ("blake3", "sha256")
    }
    assert len(keys) == 4 * len(values)


def test_the_same_content_has_one_key_however_it_lies_in_memory() -> None:
    data = np.arange(60, dtype=np.float32).reshape(6, 10)
    assert key(data[:, ::2]) == key(np.ascontiguousarray(data[:, ::2]))
    assert key(b"abc") == key(bytearray(b"abc")) == key(np.frombuffer(b"abc", np.uint8))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    hasher_of.cache_clear()
    monkeypatch.setattr(contents.importlib, "import_module", missing)
    with pytest.raises(NotConfiguredError, match=r"cascade-mpi\[dedup\].*sha256"):
        hasher_of("blake3")
    assert hasher_of("sha256") is hashlib.sha256
    monkeypatch.undo()
    hasher_of.cache_clear()
    assert importlib.import_module("blake3").blake3 is hasher_of("blake3")


def test_namespaces_by_content() -> None:
    by_key, by_content = Namespace("a"), Namespace("a", identity="content")
    spaces = [by_key, by_content, Namespace("a", identity="content", hash="sha256"),
              Namespace("a", identity="content", share_content=True), Namespace("a", content_keys=True)]  # fmt: skip
    assert len({each.digest() for each in spaces}) == len({each.id for each in spaces}) == len(spaces)
    assert str(by_content) == "a (by content)"
    assert by_content.by_content and not by_key.by_content
    assert not Namespace(identity="content").is_default


@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        ({"identity": "bytes"}, ValueError, 'identity of a namespace is \'bytes\': it must be "key" or "content"'),
        ({"identity": "content", "hash": "md5"}, ValueError, 'it must be "blake3" or "sha256"'),
        ({"identity": "content", "share_content": 1}, TypeError, "share_content of a namespace is True or False"),
        ({"identity": "content", "content_keys": True}, ValueError, "equal blocks have equal keys"),
        ({"share_content": True}, ValueError, 'are for identity="content"'),
        ({"hash": "sha256"}, ValueError, 'are for identity="content"'),
    ],
)
def test_what_a_namespace_by_content_may_be(parts: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Namespace("a", **parts)
