"""Checks of the directory that is to hold blocks on disk: kind of file system, room, rights, O_DIRECT, striping.

Does not cover speed: that takes minutes and disturbs others.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cascade_mpi.config import format_size
from cascade_mpi.doctor.finding import Finding, ok, problem, warning
from cascade_mpi.doctor.host import Host

_PARALLEL = {"lustre", "gpfs", "beegfs", "wekafs", "panfs", "pvfs2", "ceph", "fuse.juicefs", "daos", "fuse.daos"}
_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs"}
_DIRECT_BYTES = 4096
_FREE_BYTES, _FREE_SHARE = 1 << 30, 0.05
_INODES = 10_000


class Mount(NamedTuple):
    """Where a file system is mounted, and what it is."""

    point: str
    kind: str
    options: str


def disk(host: Host) -> Iterator[Finding]:
    """Local. The directory of --disk; nothing without one."""
    if host.disk is None:
        return
    folder = host.disk
    if not folder.is_dir():
        what = "is not a directory" if folder.exists() else "does not exist"
        yield problem("disk directory", f"{folder} {what}", f"mkdir -p {folder}, on a file system that all nodes see")
        return
    found = mount_of(host, folder)
    yield _kind(folder, found)
    yield from _room(host, folder)
    yield from _rights(folder)
    if found.kind == "lustre":
        yield _striping(host, folder)


def mount_of(host: Host, folder: Path) -> Mount:
    """Local. The mount that a directory is in: the longest mount point above it, the last one mounted there."""
    where, best = folder.resolve(), Mount("", "unknown", "")
    for line in host.text("proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        words, kind = before.split(), after.split()
        if len(words) < 6 or not kind:
            continue
        point = words[4].replace("\\040", " ")
        if (where == Path(point) or Path(point) in where.parents) and len(point) >= len(best.point):
            best = Mount(point, kind[0], words[5])
    return best


def _kind(folder: Path, mount: Mount) -> Finding:
    line = f"{folder}: {mount.kind}, mounted at {mount.point or '?'}"
    if mount.kind in _PARALLEL:
        return ok("file system", f"{line}, parallel")
    if mount.kind in _MEMORY:
        remedy = "choose a directory on a disk or a parallel file system"
        return warning("file system", f"{line}: this is memory, and counts against the job's", remedy)
    if mount.kind in _NETWORK:
        return warning("file system", f"{line}: one server for all ranks", "use the site's scratch (Lustre, GPFS)")
    if mount.kind == "overlay":
        remedy = "bind a directory of the host into the container (-v, --bind)"
        return warning("file system", f"{line}: a container's own layer, gone with it", remedy)
    return ok("file system", f"{line}: of this node alone unless the site says otherwise")


def _room(host: Host, folder: Path) -> Iterator[Finding]:
    try:
        status = host.statvfs(folder)
    except OSError as error:
        yield problem("disk space", f"{folder}: {error.strerror}", "choose another directory")
        return
    free, total = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    inodes = status.f_favail
    line = f"{format_size(free)} free of {format_size(total)}"
    line += f", {inodes:,} inodes free" if status.f_files else ", inodes are not counted"
    if free < _FREE_BYTES:
        yield problem("disk space", line, "make room, or choose another directory")
    elif free < total * _FREE_SHARE:
        yield warning("disk space", line, "parallel file systems become slow when they are nearly full: make room")
    elif status.f_files and inodes < _INODES:
        yield warning("disk space", line, "remove small files there: every segment is a file")
    else:
        yield ok("disk space", line)


def _rights(folder: Path) -> Iterator[Finding]:
    """Write a page through the kernel's cache, then past it."""
    path = folder / f".cascade-doctor-{secrets.token_hex(8)}"
    page = mmap.mmap(-1, _DIRECT_BYTES)  # O_DIRECT wants aligned memory
    try:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except OSError as error:
            yield problem(
                "disk access", f"{folder} cannot be written: {error.strerror}", "choose one that you may write"
            )
            return
        try:
            os.write(handle, page)
        except OSError as error:
            yield problem("disk access", f"a page cannot be written to {folder}: {error.strerror}", "check your quota")
            return
        finally:
            os.close(handle)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_DIRECT)
            try:
                os.write(handle, page)
            finally:
                os.close(handle)
        except OSError as error:
            yield ok("disk access", f"can be written; O_DIRECT is not possible ({error.strerror})")
        else:
            yield ok("disk access", f"can be written, also with O_DIRECT ({_DIRECT_BYTES} bytes)")
    finally:
        page.close()
        with suppress(FileNotFoundError):
            path.unlink()


def _striping(host: Host, folder: Path) -> Finding:
    remedy = f"for large segments: lfs setstripe -c 8 -S 4M {folder}"
    ran = host.run(["lfs", "getstripe", "-d", "-c", "-S", str(folder)])
    if ran is None or ran.status != 0:
        why = "lfs is not there" if ran is None else (ran.errors.strip() or f"exit status {ran.status}")
        return warning("Lustre striping", f"unknown ({why})", "load the Lustre tools")
    words = dict(zip(ran.output.split()[::2], ran.output.split()[1::2], strict=False))
    count, size = words.get("stripe_count:", "?"), words.get("stripe_size:", "?")
    line = f"{count} stripes of {size} bytes"
    return warning("Lustre striping", line, remedy) if count in ("0", "1") else ok("Lustre striping", line)
