"""Logging: what the `CASCADE_LOG_*` variables ask of the tree `cascade`.

Covers those variables, and the one handler that they may put on the tree. Does not cover what is logged, and
leaves a program alone that has set up logging itself. Silent by default. Needs no MPI: whoever knows the rank
says it.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cascade_mpi.errors import ConfigError

LEVEL_VARIABLE = "CASCADE_LOG_LEVEL"
FILE_VARIABLE = "CASCADE_LOG_FILE"
RANKS_VARIABLE = "CASCADE_LOG_RANKS"
VARIABLES = (LEVEL_VARIABLE, FILE_VARIABLE, RANKS_VARIABLE)
LEVELS = ("debug", "info", "warning", "error", "critical")
FORMAT = "%(asctime)s.%(msecs)03d rank {rank} on {host} %(levelname)s %(message)s"
DATE_FORMAT = "%Y-%m-%dT%H:%M:%S"

_RANGE = re.compile(r"(\d{1,7})(?:-(\d{1,7}))?", re.ASCII)
_FIELD = re.compile(r"\{([^{}]*)\}")
_lock = threading.Lock()
_installed: list[tuple[LogOptions, int, logging.Handler | None]] = []  # at most one


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What the variables ask for. `level` None: nothing; `ranks` None: nobody said which."""

    level: int | None = None
    file: str | None = None
    ranks: Literal["all"] | tuple[range, ...] | None = None

    def wanted(self, rank: int) -> bool:
        """Local. Does this rank write? Rank 0, or those that were named; all into files that differ by rank."""
        if self.level is None:
            return False
        if self.ranks is None:
            return rank == 0 or (self.file is not None and "{rank}" in self.file)
        return self.ranks == "all" or any(rank in each for each in self.ranks)


def read(environ: Mapping[str, str]) -> LogOptions:
    """Local. The options in these variables; ConfigError names the variable, its value and what it may be."""
    level, file, ranks = (environ.get(name) for name in VARIABLES)
    options = LogOptions(_level(level, file), _file(file), _ranks(ranks))
    if options.file is not None and "{rank}" not in options.file and _several(options.ranks):
        raise ConfigError(
            f"{FILE_VARIABLE} is {file!r}, {RANKS_VARIABLE} is {ranks!r}: several ranks cannot write one file, "
            "put {rank} into its name"
        )
    return options


def setup(rank: int, environ: Mapping[str, str] | None = None) -> None:
    """Local. Let the tree `cascade` write what the variables (None: of this process) ask of this rank.

    The second call with the same rank and variables changes nothing. Nothing is attached where the program
    has handlers of its own, on this tree or at the root.

    Raises
    ------
    ConfigError
        A variable is wrong, or its file cannot be written.
    """
    options = read(os.environ if environ is None else environ)
    with _lock:
        if _installed and _installed[0][:2] == (options, rank):
            return
        _remove()
        handler = None
        if options.wanted(rank) and not _program_logs():
            handler = _handler(options, rank)
            tree = logging.getLogger("cascade")
            tree.addHandler(handler)
            tree.setLevel(options.level or logging.INFO)
        _installed.append((options, rank, handler))


def _remove() -> None:
    while _installed:
        handler = _installed.pop()[2]
        if handler is not None:
            tree = logging.getLogger("cascade")
            tree.removeHandler(handler)
            tree.setLevel(logging.NOTSET)
            handler.close()


def _program_logs() -> bool:
    tree = logging.getLogger("cascade")
    found = tree.handlers + (logging.getLogger().handlers if tree.propagate else [])
    return any(not isinstance(each, logging.NullHandler) for each in found)


def _handler(options: LogOptions, rank: int) -> logging.Handler:
    host = socket.gethostname()
    handler: logging.Handler
    if options.file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        path = options.file.replace("{rank}", str(rank)).replace("{host}", host)
        try:
            handler = logging.FileHandler(path, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{FILE_VARIABLE} is {options.file!r}: cannot write {path}: {error.strerror}") from None
    line = FORMAT.format(rank=rank, host=host.replace("%", "%%"))
    handler.setFormatter(logging.Formatter(line, DATE_FORMAT))
    return handler


def _level(text: str | None, file: str | None) -> int | None:
    if text is None:
        return None if file is None else logging.INFO
    if text.lower() not in LEVELS:
        raise ConfigError(f"{LEVEL_VARIABLE} is {text!r}: it must be one of {', '.join(LEVELS)}")
    return logging.getLevelNamesMapping()[text.upper()]


def _file(text: str | None) -> str | None:
    if text == "":
        raise ConfigError(f"{FILE_VARIABLE} is empty: name a file, or unset it")
    wrong = [name for name in _FIELD.findall(text or "") if name not in ("rank", "host")]
    if wrong:
        raise ConfigError(f"{FILE_VARIABLE} is {text!r}: {{{wrong[0]}}} is unknown, there are {{rank}} and {{host}}")
    return text


def _ranks(text: str | None) -> Literal["all"] | tuple[range, ...] | None:
    if text is None:
        return None
    if text == "all":
        return "all"
    found = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise ConfigError(f'{RANKS_VARIABLE} is {text!r}: it must be "all" or ranks such as "0,3-5"')
        found.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(found)


def _several(ranks: Literal["all"] | tuple[range, ...] | None) -> bool:
    return ranks is not None and (ranks == "all" or len({rank for each in ranks for rank in each[:2]}) > 1)
