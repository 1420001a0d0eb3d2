"""The settings: sizes as text, what each field may be, and the texts of the errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_mpi.config import MAX_SIZE, Config, format_size, parse_size
from cascade_mpi.errors import ConfigError
from cascade_mpi.namespaces import Namespace

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4GiB", 4 << 30), ("512 MiB", 512 * MIB), ("1.5G", 3 << 29), ("4096", 4096), ("0", 0), ("64k", 65536),
        (" 2 mib ", 2 * MIB), ("10GB", 10**10), ("100B", 100), ("0.3K", 307), ("1T", 1 << 40), ("7EiB", 7 << 60),
        (4096, 4096), (np.int64(12), 12), (MAX_SIZE, MAX_SIZE), (str(MAX_SIZE), MAX_SIZE),
    ],
)  # fmt: skip
def test_sizes(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes
    assert type(parse_size(text)) is int


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "-1", "-4GiB", "1.5", "1.5B", "4 XiB", "4Gib/s", "0x10", "1e9", "1_000", "nan", "٤GiB", "9" * 50],
)  # fmt: skip
def test_a_malformed_size_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("size", [1.5, None, True, [4096], b"4GiB"])
def test_a_size_of_another_type_is_named(size: object) -> None:
    with pytest.raises(ConfigError, match="is not a size") as caught:
        parse_size(size)  # type: ignore[arg-type]
    assert repr(size) in str(caught.value)


@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1, "8EiB", str(MAX_SIZE + 1)])
def test_sizes_that_cannot_be(size: str | int) -> None:
    with pytest.raises(ConfigError, match=str(MAX_SIZE)):
        parse_size(size)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (12 << 30, "12.0 GiB"), (MIB - 1, "1.0 MiB"),
        (1536 * MIB, "1.5 GiB"), (-5120, "-5.0 KiB"), (1 << 62, "4.0 EiB"), (1 << 71, "2048.0 EiB"),
    ],
)  # fmt: skip
def test_sizes_for_people(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text


@settings(deadline=None)
@given(st.integers(0, MAX_SIZE - (1 << 60)))
def test_a_printed_size_parses_to_within_its_last_digit(nbytes: int) -> None:
    assert parse_size(format_size(nbytes)) == pytest.approx(nbytes, rel=0.051, abs=0)


def test_defaults() -> None:
    assert dataclasses.asdict(Config()) == {
        "dram_bytes": 256 * MIB, "index_blocks": None, "windows": "auto", "progress": "auto",
        "progress_period_us": 200, "publish": "now", "copy_threads": "auto", "checksum": "inline",
        "verify_reads": False, "when_full": "evict", "eviction": "lru", "evict_ahead": 0.03,
        "mpi_calls": "auto", "rest_ms": 1.0, "namespace": "", "namespace_slots": 1024,
        "protected_bytes": None, "protect_depth": 0, "protect_shared": 0, "promote_after": 3, "copy_share": 0.25,
        "lease_extents": 32, "placement": "local", "dedup": "inline", "disk": None, "durability": "demote",
        "disk_blocks": None, "disk_mode": "write", "disk_direct": "auto", "disk_collective": "auto", "disk_quota": None,
        "disk_locks": "required",
        "segment_bytes": 256 * MIB,
    }  # fmt: skip


def test_a_config_cannot_be_changed() -> None:
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dram_bytes = 1  # type: ignore[misc]
    assert not hasattr(config, "__dict__")


def test_fields_take_their_normal_form() -> None:
    config = Config.make(dram_bytes="4GiB", index_blocks=np.int32(7), copy_threads=np.uint8(3), rest_ms=2)
    assert (config.dram_bytes, config.index_blocks, config.copy_threads, config.rest_ms) == (4 << 30, 7, 3, 2.0)
    assert type(config.rest_ms) is float
    assert config == Config(4 << 30, 7, copy_threads=3, rest_ms=2.0)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("dram_bytes", "4 XiB", "is not a size"), ("dram_bytes", 4095, "at least one page, 4096"),
        ("dram_bytes", None, "is not a size"), ("dram_bytes", True, "is not a size"), ("dram_bytes", -1, "outside 0"),
        ("index_blocks", 0, "an integer in 1..1099511627776 or None"), ("index_blocks", 2.0, "an integer in 1"),
        ("windows", "Auto", '"auto", "allocate", "shared"'), ("progress", "yes", '"auto", "thread", "none"'),
        ("progress", None, '"thread"'), ("progress_period_us", 0, "in 1..1000000"),
        ("progress_period_us", True, "in 1..1000000"), ("publish", "later", '"now", "deferred"'),
        ("copy_threads", 0, 'in 1..1024 or "auto"'), ("copy_threads", "4", 'or "auto"'),
        ("copy_threads", True, 'or "auto"'), ("checksum", "on", '"later", "inline", "off"'),
        ("verify_reads", 1, "True or False"), ("verify_reads", "yes", "True or False"),
        ("eviction", "fifo", '"lru", "arc", "s3fifo", "prefix"'), ("evict_ahead", 0.6, "in 0..0.5"),
        ("evict_ahead", -0.1, "in 0..0.5"), ("evict_ahead", True, "in 0..0.5"),
        ("when_full", "wait", '"evict", "refuse"'), ("mpi_calls", "c", '"auto", "compiled", "python"'),
        ("rest_ms", 0, "0.1 or more"), ("rest_ms", -0.5, "0.1 or more"), ("rest_ms", float("nan"), "finite"),
        ("rest_ms", float("inf"), "finite"),
        ("rest_ms", "1", "milliseconds"), ("rest_ms", True, "milliseconds"),
        ("promote_after", -1, "in 0..100"),
        ("lease_extents", -1, "in 0..4096"), ("placement", "near", '"local", "hash"'),
        ("copy_share", 0, "above 0 and at most 1"), ("copy_share", 1.5, "at most 1"),
        ("namespace_slots", 1, "2..1048576"), ("namespace", None, "must be text"),
        ("protected_bytes", "a lot", "is not a size"), ("protected_bytes", -1, "outside 0"),
        ("protect_shared", -1, "an integer in 0..32"), ("protect_shared", 1, "one session shares nothing"),
        ("protect_depth", -1, "an integer in 0.."), ("protect_depth", 1.5, "an integer in 0.."),
        ("namespace", b"a", "must be text"), ("namespace", "\ud800", "UTF-8"),
    ],
)  # fmt: skip
def test_an_error_names_field_value_and_what_is_allowed(field: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.make(**{field: value})
    text = str(caught.value)
    shown = repr(value) if field != "namespace" or isinstance(value, str) else f"a {type(value).__name__}"
    assert text.startswith(f"{field} is {shown}: ")
    assert allowed in text


def test_reads_cannot_be_verified_without_checksums() -> None:
    with pytest.raises(ConfigError, match='verify_reads is True, checksum is "off"'):
        Config(verify_reads=True, checksum="off")
    assert Config(verify_reads=True).verify_reads


def test_no_more_is_protected_than_there_is() -> None:
    with pytest.raises(ConfigError, match=r"protected_bytes is 1048577, dram_bytes 1048576: no arena .* lower"):
        Config(dram_bytes="1MiB", protected_bytes=(1 << 20) + 1)  # type: ignore[arg-type]
    assert Config(dram_bytes="1MiB", protected_bytes="1MiB").protected_bytes == 1 << 20  # type: ignore[arg-type]


def test_make_takes_a_config_a_mapping_or_nothing() -> None:
    base = Config.make({"dram_bytes": "1GiB", "namespace": "llama"})
    assert base.dram_bytes == 1 << 30
    assert Config.make() == Config.make(None) == Config.make({}) == Config()
    assert Config.make(base) == base
    changed = Config.make(base, namespace="qwen")
    assert (changed.dram_bytes, changed.namespace, base.namespace) == (1 << 30, "qwen", "llama")
    assert Config.make({"rest_ms": 5}, rest_ms=7).rest_ms == 7


def test_make_leaves_the_mapping_alone() -> None:
    settings = {"rest_ms": 5}
    Config.make(settings, rest_ms=7, namespace="a")
    assert settings == {"rest_ms": 5}


@pytest.mark.parametrize(
    ("name", "near"),
    [("dram", "dram_bytes"), ("dram_byte", "dram_bytes"), ("verify", "verify_reads"), ("rest", "rest_ms")],
)
def test_an_unknown_name_gets_the_nearest_one(name: str, near: str) -> None:
    for call in (lambda: Config.make({name: 1}), lambda: Config.make(None, **{name: 1})):
        with pytest.raises(ConfigError, match=f"unknown setting '{name}': did you mean '{near}'"):
            call()


def test_an_unknown_name_like_no_other_gets_all() -> None:
    for unknown in ({"zzz": 1}, {3: 1}):
        with pytest.raises(ConfigError, match=r"known are dram_bytes, index_blocks, .*, namespace"):
            Config.make(unknown)  # type: ignore[arg-type]


def test_make_refuses_other_types() -> None:
    with pytest.raises(ConfigError, match="config is a int: it must be a Config, a mapping, a path or None"):
        Config.make(3)  # type: ignore[arg-type]


def test_a_namespace_may_be_a_mapping_of_its_parts() -> None:
    parts = {"name": "chat", "model": "llama", "salt": "pepper"}
    assert Config.make(namespace=parts).namespace == Namespace("chat", "llama", salt=b"pepper")
    with pytest.raises(ConfigError, match="namespace has an unknown part 'modell': did you mean 'model'"):
        Config.make(namespace={"modell": "llama"})
    with pytest.raises(ConfigError, match="model of a namespace is a str, not int") as caught:
        Config.make(namespace={"model": 3, "salt": "pepper"})
    assert "pepper" not in str(caught.value)
