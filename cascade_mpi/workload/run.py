"""A workload run from its options to its result: everything around the replay.

Covers the order of the parts and their clean-up on all ranks. Does not cover the parts, nor the words of the command
line (see `commands.workload`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cascade_mpi.config import format_size
from cascade_mpi.errors import ConfigError
from cascade_mpi.traces.recording import Header
from cascade_mpi.workload.interrupt import Interruption
from cascade_mpi.workload.live import LiveView, PlainLine
from cascade_mpi.workload.metrics import JsonLines, PrometheusFile, open_textfile, textfile_path
from cascade_mpi.workload.options import WorkloadOptions
from cascade_mpi.workload.plan import Nodes, Share, agree, needed_dram, settle, share, survey
from cascade_mpi.workload.recording import Recorder
from cascade_mpi.workload.replay import Replay
from cascade_mpi.workload.result import Result, Setting
from cascade_mpi.workload.sampling import Observer, Sampler

if TYPE_CHECKING:
    from mpi4py import MPI

Say = Callable[[str], None]


def run_workload(
    comm: MPI.Intracomm,
    options: WorkloadOptions,
    say: Say | None = None,
    interruption: Interruption | None = None,
) -> Result:
    """Collective. Replay the trace on all ranks of `comm`; every rank returns the same result.

    `say` is called on rank 0 with lines for people: what is going to be done, what the trace says about itself,
    and how far it is. Errors of the trace and of the options are raised on every rank, and so is what `Store`
    raises at open; an error during the replay ends the job.
    """
    nodes = survey(comm)
    mine, dram = agree(comm, lambda: _prepare(comm, options, nodes))
    setting = settle(comm, options, mine, dram, nodes)
    say = say if comm.rank == 0 else None
    if say is not None:
        _introduce(say, setting, mine)
    from cascade_mpi.store import Store  # needs MPI: the options above do not

    with ExitStack() as last:  # what ends after the store is closed
        with ExitStack() as stack, Store(comm, options.config, **options.store, dram_bytes=dram) as store:
            recorder = last.enter_context(closing(Recorder(store, comm.rank))) if options.record else None
            replay = Replay(comm, recorder or store, mine.dealt, setting, interruption)
            observers = list(_observers(stack, comm, options, setting, say))
            textfile = stack.enter_context(_textfile(comm, options, nodes))
            sampler = Sampler(comm, setting, store, replay.server, observers, textfile)
            result = replay.run(sampler, recorder.begin if recorder else None)
        if interruption is not None:
            interruption.closed()
        if recorder is not None and options.record is not None:
            header = Header(options.block_bytes, mine.block_tokens, comm.size, setting.trace)
            if failed := recorder.collect(comm, options.record, header):
                sampler.failed(f"--record {options.record}: {failed}")
        return replace(result, unwritten=comm.bcast(tuple(sampler.failures)))


def _prepare(comm: MPI.Intracomm, options: WorkloadOptions, nodes: Nodes) -> Share:
    """This rank's share, after the files that it will write have been looked at."""
    if comm.rank == 0:
        for name in ("json", "metrics", "record"):
            check_writable(name, getattr(options, name))
    if options.prom_file is not None:
        textfile_path(options, comm.rank, comm.size, nodes)
    return share(comm, options, nodes)


def check_writable(option: str, path: Path | None) -> None:
    """Local. ConfigError when a file that is going to be written cannot be."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise ConfigError(f"--{option} {path}: there is no directory {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--{option} {path}: {'it is a directory' if path.is_dir() else 'it may not be written'}")


def _introduce(say: Say, setting: Setting, mine: Share) -> None:
    say(setting.line())
    for note in mine.notes:
        say(f"note: {note}")
    needed = needed_dram(mine.dealt, setting.block_bytes)
    if setting.dram_per_rank < needed:
        say(f"the trace needs {format_size(needed)} per rank to keep every block: expect evictions")


def _observers(
    stack: ExitStack, comm: MPI.Intracomm, options: WorkloadOptions, setting: Setting, say: Say | None
) -> Iterator[Observer]:
    """Who watches: nobody on ranks other than 0."""
    if comm.rank != 0:
        return
    if options.live or (options.live is None and say is not None and sys.stdout.isatty()):
        yield stack.enter_context(LiveView(setting))
    elif say is not None:
        yield PlainLine(say)
    if options.metrics is not None:
        yield JsonLines(stack.enter_context(options.metrics.open("w", encoding="utf-8")))


@contextmanager
def _textfile(comm: MPI.Intracomm, options: WorkloadOptions, nodes: Nodes) -> Iterator[PrometheusFile | None]:
    if options.prom_file is None:
        yield None
        return
    path = textfile_path(options, comm.rank, comm.size, nodes)
    made = open_textfile(comm, path, options.prom_per, nodes)
    yield made
    made.close()
