"""The steps of the write path at which a rank of `crash` kills itself: those of the tier, and those of its files.

Covers counting them, writes that end in their middle, and whom the signal goes to. Does not cover which step is chosen
(`crash_plan`), nor kills from outside (`crash_launch`).
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from bench.crash_plan import Kill


class Trap:
    """Counts the steps that this rank passes, and ends it, alone or with all, at the one that was chosen."""

    def __init__(
        self, kill: Kill | None, rank: int, pids: Sequence[int], seed: int, tell: Callable[[str], None]
    ) -> None:
        """`pids` are those of all ranks; `tell` notes the step before the end."""
        mine = kill is not None and bool(kill.step) and kill.rank == rank
        self._kill, self._pids, self._tell = kill if mine else None, list(pids), tell
        self._random = random.Random(seed)
        self._times = kill.times if kill is not None else 0
        self._armed = kill is not None and kill.phase == "step"
        self._within = ""
        self.passed: Counter[str] = Counter()

    def hurry(self) -> None:
        """Local. The next time will do: the work is nearly over."""
        self._times = 0

    def closing(self) -> None:
        """Local. The store is about to be closed."""
        self._times, self._armed = 0, True

    @contextmanager
    def within(self, what: str) -> Iterator[None]:
        """Local. Steps have other names meanwhile: "compact:rename:before"."""
        self._within = f"{what}:"
        try:
            yield
        finally:
            self._within = ""

    def hit(self, step: str) -> None:
        """Local. A step is passed; does not return if it is the one."""
        if self.due(step):
            self.end()

    def due(self, step: str) -> bool:
        """Local. The same for who has something to do before the end: half a write."""
        step = self._within + step
        self.passed[step] += 1
        return (
            self._armed and self._kill is not None and step == self._kill.step and self.passed[step] >= self._times
        )  # fmt: skip

    def torn(self, nbytes: int) -> int:
        """Local. How much of a write is made: not nothing, and not all."""
        return self._random.randint(1, nbytes - 1)

    def end(self) -> NoReturn:
        """Local. SIGKILL."""
        assert self._kill is not None
        self._tell(self._kill.step)
        own = os.getpid()
        if self._kill.who == "all":
            for pid in self._pids:
                if pid != own:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        os.kill(own, signal.SIGKILL)
        raise AssertionError("still alive")


class SteppingFiles:
    """The files of a directory (`segments.files.Files`) that tell a trap of what changes them."""

    def __init__(self, inner: Any, trap: Trap) -> None:
        self._inner, self._trap = inner, trap

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create(self, path: str, **more: Any) -> SteppingFile:
        """Local. As `Files.create`."""
        self._trap.hit("create:before")
        file = SteppingFile(self._inner.create(path, **more), self._trap, "fsync")
        self._trap.hit("create:after")
        return file

    def open(self, path: str, **more: Any) -> SteppingFile:
        """Local. As `Files.open`. What is synced of it was written by an earlier job."""
        return SteppingFile(self._inner.open(path, **more), self._trap, "adopt")

    def join(self, path: str, **more: Any) -> SteppingFile:
        """Local. As `PosixFiles.join`: a file that several ranks write."""
        return SteppingFile(self._inner.join(path, **more), self._trap, "shared-fsync", "shared")

    def remove(self, path: str) -> None:
        """Local. As `Files.remove`."""
        self._trap.hit("remove:before")
        self._inner.remove(path)
        self._trap.hit("remove:after")

    def rename(self, old: str, new: str) -> None:
        """Local. As `Files.rename`."""
        self._trap.hit("rename:before")
        self._inner.rename(old, new)
        self._trap.hit("rename:after")

    def sync_folder(self, path: str) -> None:
        """Local. As `Files.sync_folder`."""
        self._trap.hit("sync-folder:before")
        self._inner.sync_folder(path)
        self._trap.hit("sync-folder:after")


class SteppingFile:
    """A file (`segments.files.File`) that does the same."""

    def __init__(self, inner: Any, trap: Trap, sync: str, write: str = "") -> None:
        self._inner, self._trap, self._sync, self._write = inner, trap, sync, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __enter__(self) -> SteppingFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._inner.close()

    def write_at(self, offset: int, *parts: Any) -> None:
        """Local. As `File.write_at`. Which of the three writes of a segment it is, its place and parts tell."""
        what = self._write or ("header" if offset == 0 else "footer" if len(parts) == 1 else "record")
        self._trap.hit(f"{what}:before")
        if self._trap.due(f"{what}:torn"):
            whole = b"".join(bytes(part) for part in parts)
            self._inner.write_at(offset, whole[: self._trap.torn(len(whole))])
            self._trap.end()
        self._inner.write_at(offset, *parts)
        self._trap.hit(f"{what}:after")

    def sync(self) -> None:
        """Local. As `File.sync`."""
        self._trap.hit(f"{self._sync}:before")
        self._inner.sync()
        self._trap.hit(f"{self._sync}:after")
