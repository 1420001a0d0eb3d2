"""The settings of a store: one frozen dataclass, and the sizes that people write.

Covers the names of the settings, their defaults, what each may be, and sizes as text. Does not cover where
they come from (see `settings`), nor whether this machine can honour them (see `memory` and `window`); what a
store chose for an "auto" is in its report, never written back into the `Config`.
"""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Literal, get_args

from cascade_mpi.errors import ConfigError
from cascade_mpi.layout import MAX_DEPTH, MAX_DISK_CELLS, MIN_PAGE_BYTES
from cascade_mpi.namespaces import AnyNamespace, Namespace, as_namespace

WindowsMode = Literal["auto", "allocate", "shared"]
ProgressMode = Literal["auto", "thread", "none"]
PublishMode = Literal["now", "deferred"]
ChecksumMode = Literal["later", "inline", "off"]
WhenFull = Literal["evict", "refuse"]
Eviction = Literal["lru", "arc", "s3fifo", "prefix"]
DedupMode = Literal["inline", "behind"]
MpiCalls = Literal["auto", "compiled", "python"]
Placement = Literal["local", "hash"]
Durability = Literal["none", "demote", "writeback", "writethrough"]
DiskMode = Literal["write", "read"]
DiskDirect = Literal["auto", "on", "off"]
DiskCollective = Literal["auto", "on", "off"]
DiskLocks = Literal["required", "none"]

HIDDEN = "(hidden)"  # what is printed for a secret
MIN_REST_MS = 0.1  # 32,767 generations of a cell must last longer than any honest attempt to read it
MAX_SIZE = (1 << 63) - 1  # what an MPI_Aint can address

_PREFIXES = "KMGTPE"
_SIZE = re.compile(rf"\s*(\d{{1,40}}(?:\.\d{{1,40}})?)\s*(?:([{_PREFIXES}])(iB|B)?|B)?\s*", re.IGNORECASE | re.ASCII)
_SIZE_HELP = 'write a number of bytes or a size such as "512 MiB", "4GiB" or "1.5G" (KB, MB, GB are powers of 1000)'


def parse_size(size: str | int) -> int:
    """Local. The bytes of a size: an integer, or text such as "4096", "512 MiB", "4GiB", "1.5G".

    K, M, G, T, P, E and KiB, MiB, ... are powers of 1024; KB, MB, ... are powers of 1000; case does not
    matter; a fraction of a byte is dropped. ConfigError names what was given.
    """
    if not isinstance(size, str):
        return _whole_bytes(size)
    match = _SIZE.fullmatch(size)
    if match is None or ("." in match[1] and match[2] is None):
        raise ConfigError(f"{size!r} is not a size: {_SIZE_HELP}")
    power = 1 + _PREFIXES.index(match[2].upper()) if match[2] else 0
    base = 1000 if match[3] and match[3].upper() == "B" else 1024
    nbytes = int(Fraction(match[1]) * base**power)  # exact: a float would lose bytes above 2^53
    if nbytes > MAX_SIZE:
        raise ConfigError(f"size {size!r} is above the largest possible, {MAX_SIZE} bytes")
    return nbytes


def format_size(nbytes: int) -> str:
    """Local. A number of bytes for people, in powers of 1024: "640 B", "12.0 GiB"."""
    size, power = float(nbytes), 0
    while abs(size) >= (1023.95 if power else 1024) and power < len(_PREFIXES):  # 1023.95 would print as 1024.0
        size /= 1024
        power += 1
    return f"{size:.1f} {_PREFIXES[power - 1]}iB" if power else f"{nbytes} B"


def _whole_bytes(size: object) -> int:
    if isinstance(size, bool):
        raise ConfigError(f"{size!r} is not a size: {_SIZE_HELP}")
    try:
        nbytes = operator.index(size)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"{size!r} is not a size: {_SIZE_HELP}") from None
    if not 0 <= nbytes <= MAX_SIZE:
        raise ConfigError(f"size {nbytes} is outside 0..{MAX_SIZE} bytes")
    return nbytes


@dataclass(frozen=True, slots=True)
class Config:
    """What a store is opened with. Every rank must be given the same settings.

    Made directly it has the defaults; `Config.make` also reads variables and a file. An error about one field
    begins with that field and its value.

    Attributes
    ----------
    dram_bytes
        DRAM arena of each rank, bytes; text such as "4GiB" is taken too and becomes an int.
    index_blocks
        Blocks of all tiers and ranks that the index is sized for; None: one for each arena page of all ranks.
    windows
        Window layout: "allocate" (one window on the whole communicator), "shared" (node memory, exposed again
        between nodes), or the first of them that works here.
    progress
        "thread" starts the progress thread, "none" never does, "auto" does where a CAS needs the target.
    progress_period_us
        Sleep of the progress thread between two polls, microseconds.
    publish
        "now": a block can be found when its put returns; "deferred": after the next collective `publish()`.
    copy_threads
        Threads that share a copy of 4 MiB or more; "auto": as many as idle cores of this rank.
    checksum
        When the checksum of a payload is computed: "later" (after the put), "inline" (in its copy), or never.
    verify_reads
        Compare that checksum on every read of memory.
    when_full
        A put into a full arena drops other blocks ("evict") or is refused.
    eviction
        The policy that says which blocks go first: "lru", "arc", "s3fifo" or "prefix".
    evict_ahead
        Share of each arena, 0 to 0.5, that puts keep free for those that follow: each evicts about as much as it
        takes. 0: a put evicts when it finds no room, many blocks at once.
    mpi_calls
        Who issues the MPI calls of a get: a compiled kernel, or Python where its handles do not allow that.
    rest_ms
        How long a freed cell rests before it is reused, milliseconds.
    namespace
        The namespace of calls that name none: a `Namespace`, a mapping of its parts (in a TOML file: a table), or its
        name; "" is the default one.
    namespace_slots
        Namespaces that the store can have at most, 4 words of memory each.
    protected_bytes
        Payload bytes in the arena of each rank that may be protected from eviction, as a size, at most `dram_bytes`;
        None: any number.
    protect_depth
        Blocks put with a `depth` below this are protected as long as `protected_bytes` allows; 0: none.
    protect_shared
        Blocks that so many different sessions of one rank have used (see `Store.get_many`) are protected as long as
        `protected_bytes` allows, 2 to 32; 0: none.
    promote_after
        Reads of another node's block by one rank after which it keeps a copy for its node (protected
        blocks: after the first); 0: no copies.
    copy_share
        The part of each arena that such copies may take of what is free, more than 0 and at most 1.
        No block goes for a copy.
    lease_extents
        Parts of fifteen sixteenths of each arena, which other ranks may use while it is idle, those of its node first;
        0: none.
    placement
        A put uses the "local" arena first, or that of the key's home, which a "hash" of the key names.
    dedup
        When a put into a namespace with identity "content" looks whether the content is stored: before it stores it
        ("inline"), or afterwards, a block with each later put and `progress()` ("behind").
    disk
        The directory of the disk tier, on a file system that all ranks see; None: there is no such tier. Its parent
        must exist.
    durability
        What is written to disk unasked: "none", blocks that leave memory ("demote"), all of them soon after their put
        ("writeback"), or before it returns ("writethrough").
    disk_blocks
        Blocks that each rank can have on disk; None: one for each arena page, 4,096 at least and 2^20 at most. There is
        always room for what the directory has.
    disk_mode
        "write", for one job at a time, or "read": nothing is written, another job may write meanwhile.
    disk_direct
        Whether large writes go past the page cache: "on", "off", or where the file system can ("auto").
    disk_quota
        Bytes that the directory may hold, as a size, a part for each rank; None: what the file system has.
    disk_collective
        How `flush()` writes: all ranks through `MPI_File_write_at_all` ("on"), each its own pages of the shared files
        ("off"), or what pays ("auto").
    disk_locks
        "required", or "none" where the file system keeps no locks: then nothing keeps a second job away.
    segment_bytes
        How large a segment file gets, as a size in 1 MiB..256 MiB.
    """

    dram_bytes: int = 256 << 20
    index_blocks: int | None = None
    windows: WindowsMode = "auto"
    progress: ProgressMode = "auto"
    progress_period_us: int = 200
    publish: PublishMode = "now"
    copy_threads: Literal["auto"] | int = "auto"
    checksum: ChecksumMode = "inline"
    verify_reads: bool = False
    when_full: WhenFull = "evict"
    eviction: Eviction = "lru"
    evict_ahead: float = 0.03
    mpi_calls: MpiCalls = "auto"
    rest_ms: float = 1.0
    namespace: AnyNamespace = ""
    namespace_slots: int = 1024
    protected_bytes: int | None = None
    protect_depth: int = 0
    protect_shared: int = 0
    promote_after: int = 3
    copy_share: float = 0.25
    lease_extents: int = 32
    placement: Placement = "local"
    dedup: DedupMode = "inline"
    disk: str | None = None
    durability: Durability = "demote"
    disk_blocks: int | None = None
    disk_mode: DiskMode = "write"
    disk_direct: DiskDirect = "auto"
    disk_quota: int | None = None
    disk_collective: DiskCollective = "auto"
    disk_locks: DiskLocks = "required"
    segment_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        """Check every field; ConfigError names the field, its value and what is allowed."""
        self._set("dram_bytes", _dram(self.dram_bytes))
        if self.index_blocks is not None:
            self._set("index_blocks", _integer("index_blocks", self.index_blocks, 1, 1 << 40, " or None"))
        for name, modes in _MODES.items():
            _choose(name, getattr(self, name), modes)
        self._set("progress_period_us", _integer("progress_period_us", self.progress_period_us, 1, 1_000_000))
        if self.copy_threads != "auto":
            self._set("copy_threads", _integer("copy_threads", self.copy_threads, 1, 1024, ' or "auto"'))
        if not isinstance(self.verify_reads, bool):
            raise ConfigError(f"verify_reads is {self.verify_reads!r}: it must be True or False")
        if self.verify_reads and self.checksum == "off":
            raise ConfigError('verify_reads is True, checksum is "off": reads can be verified with "later" or "inline"')
        self._set("evict_ahead", _fraction("evict_ahead", self.evict_ahead, 0.5, or_zero=True))
        self._set("rest_ms", _milliseconds("rest_ms", self.rest_ms))
        self._set("namespace_slots", _integer("namespace_slots", self.namespace_slots, 2, 1 << 20))
        self._set("namespace", _namespace(self.namespace))
        if self.protected_bytes is not None:
            self._set("protected_bytes", _size("protected_bytes", self.protected_bytes))
            if self.protected_bytes > self.dram_bytes:
                raise ConfigError(
                    f"protected_bytes is {self.protected_bytes}, dram_bytes {self.dram_bytes}: no arena can have more "
                    "protected bytes than it has; lower protected_bytes, or give None for any number"
                )
        self._set("protect_depth", _integer("protect_depth", self.protect_depth, 0, MAX_DEPTH))
        self._set("protect_shared", _integer("protect_shared", self.protect_shared, 0, 32))
        if self.protect_shared == 1:
            raise ConfigError("protect_shared is 1: one session shares nothing; it must be 0, or an integer in 2..32")
        self._set("promote_after", _integer("promote_after", self.promote_after, 0, 100))
        self._set("copy_share", _fraction("copy_share", self.copy_share, 1, or_zero=False))
        self._set("lease_extents", _integer("lease_extents", self.lease_extents, 0, 4096))
        if self.placement == "hash" and not self.lease_extents:
            raise ConfigError('placement is "hash", lease_extents is 0: blocks are placed elsewhere by leases')
        if self.disk is not None:
            if not isinstance(self.disk, (str, os.PathLike)) or not os.fspath(self.disk):
                raise ConfigError(f"disk is {self.disk!r}: it must be the path of a directory, or None")
            self._set("disk", str(os.fspath(self.disk)))
        if self.disk_blocks is not None:
            self._set("disk_blocks", _integer("disk_blocks", self.disk_blocks, 1, MAX_DISK_CELLS, " or None"))
        if self.disk_quota is not None:
            self._set("disk_quota", _size("disk_quota", self.disk_quota))
        self._set("segment_bytes", _size("segment_bytes", self.segment_bytes))
        if not 1 << 20 <= self.segment_bytes <= 256 << 20:
            raise ConfigError(f"segment_bytes is {self.segment_bytes}: it must be a size in 1MiB..256MiB")

    @classmethod
    def make(cls, config: ConfigLike = None, **overrides: Any) -> Config:
        """Local. The settings of a store: `overrides` over `CASCADE_*` variables over a TOML file.

        `config` is None, a mapping (the same as `overrides`), the path of a TOML file (in the place of the one
        that `CASCADE_CONFIG` names), or a whole `Config`: then neither variables nor a file are looked at.
        ConfigError names what is wrong and where it stands; for an unknown name it proposes the nearest one.
        """
        from cascade_mpi.settings import resolve  # which knows this class

        return resolve(config, overrides).config

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the normal form of a field, only while the instance is made


ConfigLike = Config | Mapping[str, Any] | str | os.PathLike[str] | None  # what `Config.make` takes

_MODES: dict[str, tuple[str, ...]] = {
    "windows": get_args(WindowsMode),
    "progress": get_args(ProgressMode),
    "publish": get_args(PublishMode),
    "checksum": get_args(ChecksumMode),
    "when_full": get_args(WhenFull),
    "eviction": get_args(Eviction),
    "mpi_calls": get_args(MpiCalls),
    "placement": get_args(Placement),
    "dedup": get_args(DedupMode),
    "durability": get_args(Durability),
    "disk_mode": get_args(DiskMode),
    "disk_direct": get_args(DiskDirect),
    "disk_collective": get_args(DiskCollective),
    "disk_locks": get_args(DiskLocks),
}


def _size(name: str, size: str | int) -> int:
    try:
        return parse_size(size)
    except ConfigError as error:
        raise ConfigError(f"{name} is {size!r}: {error}") from None


def _dram(size: str | int) -> int:
    nbytes = _size("dram_bytes", size)
    if nbytes < MIN_PAGE_BYTES:
        raise ConfigError(f"dram_bytes is {size!r}: it must be at least one page, {MIN_PAGE_BYTES} bytes")
    return nbytes


def _integer(name: str, value: object, low: int, high: int, also: str = "") -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise ConfigError(f"{name} is {value!r}: it must be an integer in {low}..{high}{also}")
    return number


def _milliseconds(name: str, value: object) -> float:
    number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not MIN_REST_MS <= number < math.inf:
        raise ConfigError(f"{name} is {value!r}: it must be a finite number of milliseconds, {MIN_REST_MS} or more")
    return number


def _fraction(name: str, value: object, most: float, *, or_zero: bool) -> float:
    number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not (0 < number <= most or (or_zero and number == 0)):
        allowed = f"in 0..{most:g}" if or_zero else f"above 0 and at most {most:g}"
        raise ConfigError(f"{name} is {value!r}: it must be a number {allowed}")
    return number


def _choose(name: str, value: object, modes: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in modes:
        allowed = ", ".join(f'"{mode}"' for mode in modes)
        raise ConfigError(f"{name} is {value!r}: it must be one of {allowed}")


def _namespace(value: object) -> AnyNamespace:
    if isinstance(value, Mapping):  # a table of a TOML file; its salt is not to be shown
        value = _namespace_of(value)
    if not isinstance(value, (str, Namespace)):
        shown = f"a {type(value).__name__}"  # not its contents: there may be a salt in it
        raise ConfigError(f'namespace is {shown}: it must be text or a Namespace ("" for the default namespace)')
    try:
        as_namespace(value)
    except ValueError as error:
        raise ConfigError(f"namespace is {value!r}: {error}") from None
    if isinstance(value, Namespace) and value == Namespace(value.name):
        return value.name  # one form of the same thing: the ranks' settings are compared
    return value


def _namespace_of(parts: Mapping[str, Any]) -> Namespace:
    known = [each.name for each in fields(Namespace)]
    for part in parts:
        if part not in known:
            raise ConfigError(f"namespace has an unknown part {part!r}: {nearest(str(part), known)}")
    try:
        if parts.get("salt") == HIDDEN:
            raise ValueError(f"its salt is {HIDDEN!r}, as it is printed: write the salt itself")
        return Namespace(**parts)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"namespace: {error}") from None


def nearest(name: str, names: Sequence[str], *, skip: int = 0) -> str:
    """Local. A proposal for a name that is none of `names`; the first `skip` characters are common to all."""
    by_rest = {known[skip:].lower(): known for known in names}
    near = difflib.get_close_matches(name[skip:].lower(), by_rest, n=1, cutoff=0.4)
    return f"did you mean {by_rest[near[0]]!r}?" if near else f"known are {', '.join(names)}"
