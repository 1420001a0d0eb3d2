"""Whole recordings written and read by the parts that the product has for one line each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cascade_mpi.traces.recording import Access, Header, RecordingReader, access_line, header_line
from cascade_mpi.traces.source import Faults, Source


def write_recording(path: Path, header: Header, accesses: Iterable[Access]) -> Path:
    with path.open("wb") as file:
        file.write(header_line(header))
        file.writelines(map(access_line, accesses))
    return path


def read_recording(path: Path) -> tuple[Header, list[Access]]:
    reader = RecordingReader(Source(path))
    return reader.header, [access for _, access in reader.accesses(Faults(path.name, strict=True))]
