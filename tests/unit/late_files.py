"""Files of a file system that is not coherent: what others append to an open segment is seen late, or after the seal.

Covers the two ways in which a tail is missing, over the files in memory and those of a directory. Does not cover names
that are seen late.
"""

from __future__ import annotations

from typing import Any


class LateFiles:
    """Files that hide what is behind byte `seen` of every segment without a seal, but for those named in `own`.

    `zeros`: the size is right and the bytes are zero from the page of `seen` on; else the file ends there. A file that
    is open stays as it was when it was opened, whatever its name is by now. Everything else is that of `files`.
    """

    def __init__(self, files: Any, seen: int, *, zeros: bool = False) -> None:
        self.files, self.seen, self.zeros, self.own = files, seen, zeros, set[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.files, name)

    def create(self, path: str, **options: Any) -> Any:
        self.own.add(path)
        return self.files.create(path, **options)

    def open(self, path: str, **options: Any) -> Any:
        file = self.files.open(path, **options)
        if not path.endswith(".seg.open") or path in self.own:
            return file
        return _LateFile(file, min(self.seen, file.size()), self.zeros)


class _LateFile:
    def __init__(self, file: Any, seen: int, zeros: bool) -> None:
        self._file, self._seen, self._zeros = file, seen, zeros

    def size(self) -> int:
        return int(self._file.size()) if self._zeros else self._seen

    def read_at(self, offset: int, out: Any) -> int:
        view = memoryview(out).cast("B") if memoryview(out).nbytes else memoryview(b"")
        read = int(self._file.read_at(offset, view))
        there = max(min(self._seen - offset, read), 0)
        view[there:read] = bytes(read - there)
        return read if self._zeros else there

    def sync(self) -> None:
        self._file.sync()

    def close(self) -> None:
        self._file.close()
