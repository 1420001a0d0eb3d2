"""Which store a directory is: its file STORE, written once.

Covers making, reading and refusing it. Does not cover who may write to the directory (see `lock`) nor the segments,
each of which repeats the identity: a segment of another store that was copied here is told apart by it.

The file is JSON in one line, for people too. Its last field is a checksum of all before it. It comes into being under
another name and is synced before it gets its own, so that it is whole or not there. The folder of the segments is made
before it: where there is a file STORE and no such folder, somebody has taken it away.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cascade_mpi.errors import StoreIdentityError
from cascade_mpi.segments.format import FOLDER

if TYPE_CHECKING:
    from cascade_mpi.segments.files import Files

NAME = "STORE"
VERSION = 1  # of the directory: names, segments, records
UUID_BYTES = 16
_NEW = "STORE.new"
_MAX_BYTES = 4096
_WHAT = "cascade store"


class Identity(NamedTuple):
    """The identity of a store."""

    uuid: bytes  # 16 random bytes: every segment has them
    created: int  # ns of Unix time
    version: int = VERSION

    def __str__(self) -> str:
        return self.uuid.hex()


def read(files: Files) -> Identity | None:
    """Local. The identity of a directory, or None if it has none. 1 open, 1 read.

    StoreIdentityError: the file is damaged, or of a version that this program does not know. Its bytes were made sure
    when it was made; who is going to write calls `ensure`, which makes its name sure as well.
    """
    try:
        file = files.open(NAME)
    except FileNotFoundError:
        return None
    try:
        data = bytearray(_MAX_BYTES + 1)
        return _decode(bytes(data[: file.read_at(0, data)]))
    finally:
        file.close()


def ensure(files: Files, uuid: bytes, created: int) -> Identity:
    """Local. The identity of a directory for who is going to write to it: the one that is there, or a new one.

    Call it with the directory's lock held. Survives a power loss when it returns, also where an earlier job was killed
    on its way. 1 open, 1 read, 2 syncs; a new one needs 1 folder, 1 create, 1 write, 2 syncs and 1 rename more.

    Raises
    ------
    StoreIdentityError
        As `read`; or there are segments here, whose STORE is lost: a new identity would make them strangers.
    """
    if len(uuid) != UUID_BYTES:
        raise ValueError(f"a store's uuid has {UUID_BYTES} bytes, not {len(uuid)}")
    found = read(files)
    if found is not None:
        # A killed job may have left the name in memory alone: segments would outlive the store that they are of.
        file = files.open(NAME)
        try:
            file.sync()
        finally:
            file.close()
        files.sync_folder("")
        return found
    strangers = [name for name in _segments(files) if name.endswith((".seg", ".seg.open"))]
    if strangers:
        raise StoreIdentityError(
            f"{NAME} is not there, but {len(strangers)} segments are (segments/{strangers[0]}): was it removed, or is "
            "this the wrong directory? Put it back from a copy, or `cascade fsck` shows which store they are of"
        )
    with suppress(FileNotFoundError):
        files.remove(_NEW)  # of a job that was killed here
    # The folder before the file: a store without it has lost its segments, and that must not look like a new store.
    files.make_folder(FOLDER)
    files.sync_folder("")
    made = Identity(bytes(uuid), created)
    file = files.create(_NEW)
    try:
        file.write_at(0, _encode(made))
        file.sync()
    finally:
        file.close()
    files.rename(_NEW, NAME)
    files.sync_folder("")
    return made


def _segments(files: Files) -> list[str]:
    try:
        return files.names(FOLDER)
    except FileNotFoundError:
        return []


def _encode(identity: Identity) -> bytes:
    fields = {
        "what": _WHAT,
        "version": identity.version,
        "uuid": identity.uuid.hex(),
        "created": identity.created,
    }
    text = json.dumps(fields)
    return f'{text[:-1]}, "checksum": "{_checksum(text)}"}}\n'.encode()


def _decode(data: bytes) -> Identity:
    text, mark, rest = data.partition(b', "checksum": "')
    body = text + b"}"
    if len(data) > _MAX_BYTES or not mark or rest != f'{_checksum(body)}"}}\n'.encode():
        raise StoreIdentityError(
            f"{NAME} is damaged ({len(data):,} bytes, its checksum does not fit): put it back from a copy; "
            "`cascade fsck` shows what the segments say"
        )
    fields = json.loads(body)  # with a checksum that fits it is what some version of this program wrote
    version = fields.get("version")
    if fields.get("what") != _WHAT or not isinstance(version, int):
        raise StoreIdentityError(f"{NAME} is no file of this program: is this the right directory?")
    if version != VERSION:
        remedy = "use a newer Cascade" if version > VERSION else "export it with the Cascade that wrote it"
        raise StoreIdentityError(
            f"the store has format version {version}, this program knows {VERSION}: {remedy}, or use an empty directory"
        )
    uuid, created = bytes.fromhex(fields["uuid"]), fields["created"]
    if len(uuid) != UUID_BYTES or not isinstance(created, int):
        raise StoreIdentityError(f"{NAME} has a uuid or a time that cannot be: is this the right directory?")
    return Identity(uuid, created, version)


def _checksum(text: str | bytes) -> str:
    return hashlib.blake2b(text.encode() if isinstance(text, str) else text, digest_size=16).hexdigest()
