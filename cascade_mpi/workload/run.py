"""A workload run from its options to its result: everything around the replay.

Covers the order of the parts and their clean-up on all ranks. Does not cover the parts, nor the words of the command
line (see `commands.workload`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from cascade_mpi.config import format_size
from cascade_mpi.errors import ConfigError
from cascade_mpi.traces.recording import Header
from cascade_mpi.workload.interrupt import Interruption
from cascade_mpi.workload.live import LiveView, PlainLine
from cascade_mpi.workload.metrics import JsonLines, PrometheusFile, open_textfile, textfile_path
from cascade_mpi.workload.options import WorkloadOptions
from cascade_mpi.workload.outputs import Opened, check
from cascade_mpi.workload.plan import Nodes, Share, agree, needed_dram, settle, share, survey
from cascade_mpi.workload.recording import Recorder
from cascade_mpi.workload.replay import Replay
from cascade_mpi.workload.result import Result, Setting, check_counts
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
    say = say if comm.rank == 0 else None
    if say is not None and options.trace is not None:
        say(f"cascade workload: {'every rank reads' if comm.size > 1 else 'reading'} {options.trace}")
    mine, dram = agree(comm, lambda: _prepare(comm, options, nodes))
    setting = settle(comm, options, mine, dram, nodes)
    if say is not None:
        _introduce(say, setting, mine)
    from cascade_mpi.store import Store  # needs MPI: the options above do not

    with closing(_open(comm, options)) as opened:  # until the store is closed
        with ExitStack() as stack, Store(comm, options.config, **{**options.store, "dram_bytes": dram}) as store:
            recorder = Recorder(store, comm.rank, opened.record) if opened.record is not None else None
            replay = Replay(comm, recorder or store, mine.dealt, setting, interruption)
            observers = list(_observers(stack, comm, options, opened, setting, say))
            textfile = stack.enter_context(_textfile(comm, options, nodes))
            sampler = Sampler(comm, setting, store, replay.server, observers, textfile)
            result = replay.run(sampler, recorder.begin if recorder else None)
        if interruption is not None:
            interruption.closed()
        check_counts(result, accesses=replay.accesses, most_hits=mine.dealt.prefix_hits)
        if recorder is not None and options.record is not None:
            header = Header(options.block_bytes, mine.block_tokens, comm.size, setting.trace, mine.has_blocks)
            if failed := recorder.collect(comm, options.record, header):
                sampler.failed(f"--record {options.record}: {failed}")
        opened.close(sampler.failed)
        return replace(result, unwritten=comm.bcast(tuple(sampler.failures)))


def _prepare(comm: MPI.Intracomm, options: WorkloadOptions, nodes: Nodes) -> Share:
    """This rank's share, after the files that it will write have been looked at."""
    named = options.prom_file is not None
    textfile = textfile_path(options, comm.rank, comm.size, nodes) if named else None
    check(options, textfile, writes=comm.rank == 0)
    return share(comm, options, nodes)


def _open(comm: MPI.Intracomm, options: WorkloadOptions) -> Opened:
    """Before the store, so that a file that cannot be opened is an error on all ranks alike. 1 allgather."""
    opened, error = None, None
    try:
        opened = Opened(options, comm.rank)
    except ConfigError as raised:
        error = raised
    errors = [each for each in comm.allgather(error) if each is not None]
    if opened is None or errors:
        if opened is not None:
            opened.close()
        raise errors[0]
    return opened


def _introduce(say: Say, setting: Setting, mine: Share) -> None:
    say(setting.line())
    for note in mine.notes:
        say(f"note: {note}")
    needed = needed_dram(mine.dealt, setting.block_bytes)
    if setting.dram_per_rank < needed:
        say(f"the trace needs {format_size(needed)} per rank to keep every block: expect evictions")


def _observers(
    stack: ExitStack,
    comm: MPI.Intracomm,
    options: WorkloadOptions,
    opened: Opened,
    setting: Setting,
    say: Say | None,
) -> Iterator[Observer]:
    """Who watches: nobody on ranks other than 0."""
    if comm.rank != 0:
        return
    if options.live or (options.live is None and say is not None and sys.stdout.isatty()):
        yield stack.enter_context(LiveView(setting))
    elif say is not None:
        yield PlainLine(say)
    if opened.metrics is not None:
        yield JsonLines(opened.metrics)


@contextmanager
def _textfile(comm: MPI.Intracomm, options: WorkloadOptions, nodes: Nodes) -> Iterator[PrometheusFile | None]:
    if options.prom_file is None:
        yield None
        return
    path = textfile_path(options, comm.rank, comm.size, nodes)
    made = open_textfile(comm, path, options.prom_per, nodes)
    yield made
    made.close()
