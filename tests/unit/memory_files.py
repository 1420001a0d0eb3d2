"""A store's directory in memory: the contract of `segments.files` in its simplest form, for tests of what is above it.

Covers contents and errors of names. Does not cover what a power loss leaves, nor faults (see `power_loss`).
"""

from __future__ import annotations


class MemoryFile:
    def __init__(self, files: MemoryFiles, path: str, data: bytearray) -> None:
        self.files, self.path, self.data = files, path, data
        self.closed = False

    def write_at(self, offset: int, *parts: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        for part in parts:
            view = memoryview(part).cast("B")
            self.files.writes += 1
            if len(self.data) < offset + view.nbytes:
                self.data.extend(bytes(offset + view.nbytes - len(self.data)))
            self.data[offset : offset + view.nbytes] = view
            offset += view.nbytes

    def read_at(self, offset: int, out: bytearray | memoryview) -> int:
        assert not self.closed
        out = memoryview(out).cast("B")
        piece = self.data[offset : offset + out.nbytes]
        out[: len(piece)] = piece
        self.files.reads += 1
        return len(piece)

    def size(self) -> int:
        return len(self.data)

    def sync(self) -> None:
        self.files.syncs += 1

    def close(self) -> None:
        self.closed = True


class MemoryFiles:
    def __init__(self) -> None:
        self.contents: dict[str, bytearray] = {}
        self.folders = {""}
        self.reads = self.writes = self.syncs = self.folder_syncs = 0

    def create(self, path: str) -> MemoryFile:
        if path in self.contents:
            raise FileExistsError(path)
        self.contents[path] = bytearray()
        return MemoryFile(self, path, self.contents[path])

    def open(self, path: str) -> MemoryFile:
        if path not in self.contents:
            raise FileNotFoundError(path)
        return MemoryFile(self, path, self.contents[path])

    def rename(self, old: str, new: str) -> None:
        self.contents[new] = self.contents.pop(old)

    def remove(self, path: str) -> None:
        if path not in self.contents:
            raise FileNotFoundError(path)
        del self.contents[path]

    def names(self, folder: str) -> list[str]:
        if folder not in self.folders:
            raise FileNotFoundError(folder)
        head = f"{folder}/" if folder else ""
        inside = [path.removeprefix(head) for path in [*self.contents, *self.folders] if path.startswith(head)]
        return sorted(name for name in inside if name and "/" not in name)

    def make_folder(self, path: str) -> None:
        self.folders.add(path)

    def sync_folder(self, path: str) -> None:
        if path not in self.folders:
            raise FileNotFoundError(path)
        self.folder_syncs += 1
