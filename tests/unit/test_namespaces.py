"""Namespaces: fixed digests, what they depend on, and what a namespace may be."""

from __future__ import annotations

import hashlib
import struct
from itertools import product

import pytest

from cascade_mpi.keys import key_array, key_words
from cascade_mpi.namespaces import DEFAULT, MAX_SALT_BYTES, Namespace, as_namespace

FULL = Namespace("chat", "llama-3-70b", "bf16", "tp4", b"0123456789abcdef")


def test_the_digest_is_keyed_blake2b_of_all_parts() -> None:
    parts = b"".join(struct.pack(">I", len(part)) + part for part in (b"chat", b"llama-3-70b", b"bf16", b"tp4"))
    expected = hashlib.blake2b(
        parts + struct.pack(">Q", 3), digest_size=16, key=FULL.salt, person=b"cascade space 2"
    ).digest()
    assert FULL.digest(3) == expected
    assert key_words(5, FULL.digest(3)) == (
        int.from_bytes(expected[:8], "big"), int.from_bytes(expected[8:], "big") ^ 5
    )  # fmt: skip


def test_vectors() -> None:
    """Blocks on disk will be found by these."""
    assert FULL.digest(0).hex() == "dfda5b8d66e4cc7c8af3b17d0edc88d8"
    assert FULL.digest(1).hex() == "2faa32fa87dd41d2417cefcc8445d47a"
    assert Namespace("a").digest().hex() == "dde0176b1c354bf803062247f9cf6631"
    assert FULL.id == int("d6eda8f5146f1269", 16)


def test_the_default_namespace_leaves_keys_as_they_are() -> None:
    assert DEFAULT.digest() == bytes(16)
    assert DEFAULT.id == 0
    assert DEFAULT.is_default
    assert key_words(1 << 100 | 7, DEFAULT.digest()) == (1 << 36, 7)
    assert DEFAULT.digest(1) != bytes(16)


def test_every_part_and_the_epoch_make_another_digest() -> None:
    texts = ["", "a", "ab", "a\0"]
    spaces = [Namespace(*parts, salt=salt) for parts in product(texts, repeat=4) for salt in (b"", b"a", b"ab")]
    digests = {each.digest(epoch) for each in spaces for epoch in (0, 1)}
    assert len(digests) == 2 * len(spaces)
    assert len({each.id for each in spaces}) == len(spaces)
    assert len({key_words("k", digest) for digest in digests}) == len(digests)
    assert len({key_array(["k"], digest).tobytes() for digest in digests}) == len(digests)


def test_rules_are_no_part_of_a_namespace() -> None:
    ruled = Namespace("chat", protect_depth=0, ttl=5)
    assert ruled != Namespace("chat")
    assert (ruled.id, ruled.digest(3), str(ruled)) == (Namespace("chat").id, Namespace("chat").digest(3), "chat")
    assert Namespace(ttl=5).is_default
    assert Namespace(ttl=5).digest() == bytes(16)


def test_an_id_says_nothing_about_the_keys() -> None:
    assert FULL.id.to_bytes(8, "big") not in FULL.digest()


def test_a_salt_is_not_shown() -> None:
    assert str(FULL) == "chat/llama-3-70b/bf16/tp4 (salted)"
    assert "0123" not in repr(FULL) + str(FULL)
    assert str(DEFAULT) == "default"
    assert str(Namespace(model="m")) == "m"


def test_a_salt_may_be_text() -> None:
    assert Namespace(salt="ü") == Namespace(salt="ü".encode())  # type: ignore[arg-type]


def test_what_a_namespace_may_be() -> None:
    assert as_namespace("a") == Namespace("a")
    assert as_namespace(FULL) is FULL
    for wrong in (None, 3, b"a"):
        with pytest.raises(TypeError, match="a namespace is a str or a Namespace, not"):
            as_namespace(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model of a namespace is a str, not int"):
        Namespace(model=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="salt of a namespace is bytes or a str, not int"):
        Namespace(salt=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"salt of a namespace has {MAX_SALT_BYTES + 1} bytes: at most"):
        Namespace(salt=b"x" * (MAX_SALT_BYTES + 1))
    with pytest.raises(ValueError, match=r"name of a namespace is '.*': it must be text that UTF-8 can encode"):
        Namespace("\ud800")
