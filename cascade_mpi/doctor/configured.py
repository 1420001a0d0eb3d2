"""Checks of the settings that a store would be opened with here, and how large an arena they ask for.

Covers variables and the file that they name. Does not cover whether the arenas fit the node (see `limits`) nor options
of a command.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cascade_mpi.config import Config, format_size
from cascade_mpi.doctor.finding import Finding, ok, problem
from cascade_mpi.doctor.host import Host
from cascade_mpi.errors import ConfigError
from cascade_mpi.settings import DEFAULT, NAMES, resolve, shown


class Arena(NamedTuple):
    """The arena of each rank: its bytes, whether somebody asked for that many, and what to call it."""

    bytes: int
    given: bool
    name: str


def settings(host: Host) -> Iterator[Finding]:
    """Local. Can the variables and the settings file be read, and what do they change."""
    try:
        effective = resolve(environ=host.environ)
    except ConfigError as error:
        yield problem("settings", str(error), "correct or unset it; cascade config shows what is in effect")
        return
    given = [
        f"{name} {shown(name, getattr(effective.config, name))} ({effective.origins[name]})"
        for name in NAMES
        if effective.origins[name] != DEFAULT
    ]
    yield ok("settings", ", ".join(given) or "all defaults")


def arena(host: Host) -> Arena:
    """Local. The arena that the settings ask for; the default one where they cannot be read."""
    try:
        effective = resolve(environ=host.environ)
    except ConfigError:
        effective = resolve(Config())
        return Arena(effective.config.dram_bytes, False, f"default arena ({format_size(effective.config.dram_bytes)})")
    size, origin = effective.config.dram_bytes, effective.origins["dram_bytes"]
    if origin == DEFAULT:
        return Arena(size, False, f"default arena ({format_size(size)})")
    return Arena(size, True, f"arena of dram_bytes = {shown('dram_bytes', size)} ({origin})")
