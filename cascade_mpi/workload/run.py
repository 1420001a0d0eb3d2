"""A workload run from its options to its result: everything around the replay.

Covers the order of the parts and their clean-up on all ranks. Does not cover the parts, nor the words of the command
line (see `commands.workload`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade_mpi.config import Config, format_size
from cascade_mpi.errors import ConfigError
from cascade_mpi.traces.recording import Header
from cascade_mpi.workload.interrupt import Interruption
from cascade_mpi.workload.keeping import Keeper, shown
from cascade_mpi.workload.live import LiveView, PlainLine
from cascade_mpi.workload.metrics import JsonLines, PrometheusFile, open_textfile, textfile_path
from cascade_mpi.workload.options import WorkloadOptions
from cascade_mpi.workload.outputs import Opened, check
from cascade_mpi.workload.plan import Nodes, Share, agree, disk_cells, needed_dram, settle, share, survey
from cascade_mpi.workload.recording import Recorder
from cascade_mpi.workload.replay import Replay
from cascade_mpi.workload.result import Result, Setting, check_counts, distinct
from cascade_mpi.workload.sampling import Observer, Sampler
from cascade_mpi.workload.server import Ids, keys_of
from cascade_mpi.workload.state import State, trace_digest
from cascade_mpi.workload.state import read as read_state

if TYPE_CHECKING:
    from mpi4py import MPI

    from cascade_mpi.store import Store

Say = Callable[[str], None]
_LOOKED_UP = 4096  # keys at once


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
    state = _state(comm, options, mine)
    setting = settle(comm, options, mine, dram, nodes, 0 if state is None else state.position)
    if say is not None:
        _introduce(say, setting, mine)
    from cascade_mpi.store import Store  # needs MPI: the options above do not

    with closing(_open(comm, options)) as opened:  # until the store is closed
        with ExitStack() as stack, Store(comm, options.config, **_settings(options, mine, dram)) as store:
            known = _known(comm, store, mine, setting)
            if known is not None:
                _begin_warm(comm, store, options, known, say)
            recorder = Recorder(store, comm.rank, opened.record) if opened.record is not None else None
            keeper = Keeper(
                comm, store, every=options.flush_every, grace_s=options.grace, state=state, path=options.state
            )  # fmt: skip
            interruption = interruption or Interruption(speaks=False)  # one that is not entered catches nothing
            replay = Replay(comm, recorder or store, mine.dealt, setting, interruption, keeper, known)
            observers = list(_observers(stack, comm, options, opened, setting, say))
            textfile = stack.enter_context(_textfile(comm, options, nodes))
            sampler = Sampler(comm, setting, store, replay.server, observers, textfile)
            keeper.failed = sampler.failed
            result = replay.run(sampler, recorder.begin if recorder else None)
            drained = keeper.end(replay.signal, interruption)
            disk = keeper.on_disk()  # again: most is written now
        interruption.closed()
        result = replace(result, disk=disk, drained=drained, parts=comm.bcast(shown(keeper.state)))
        most = replay.accesses if result.warm or setting.first else mine.dealt.prefix_hits
        check_counts(result, accesses=replay.accesses, most_hits=most)
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


def _state(comm: MPI.Intracomm, options: WorkloadOptions, mine: Share) -> State | None:
    """Collective. Where an earlier run has ended, as rank 0 reads it; its error is raised on all ranks. 1 bcast."""
    if options.state is None:
        return None
    found: State | ConfigError | None = None
    if comm.rank == 0:
        digest = trace_digest(mine.dealt, mine.trace, options.block_bytes)
        try:
            found = read_state(options.state, digest, mine.dealt.requests)
        except ConfigError as error:
            found = error
    found = comm.bcast(found)
    if isinstance(found, ConfigError):
        raise found
    return found


def _settings(options: WorkloadOptions, mine: Share, dram: int) -> dict[str, Any]:
    """The store's: what was asked for, and cells enough on disk."""
    found = {**options.store, "dram_bytes": dram}
    config = Config.make(options.config, **found)
    cells = None if config.disk is None else disk_cells(mine.dealt, config, dram)
    return found if cells is None else {**found, "disk_blocks": cells}


def _known(comm: MPI.Intracomm, store: Store, mine: Share, setting: Setting) -> Ids | None:
    """Collective. The blocks of this rank's share that are on disk; None if the directory was empty. 1 allreduce."""
    disk = store.report()["disk"]
    if not comm.allreduce(disk["found"]["blocks"] if disk["on"] else 0):
        return None
    dealt = mine.dealt
    parts = dealt.mine[int(np.searchsorted(dealt.indices, setting.first)) :]
    ids = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
    there = [
        store.contains_many(keys_of(ids[at : at + _LOOKED_UP], setting)) for at in range(0, len(ids), _LOOKED_UP)
    ]  # fmt: skip
    found: Ids = ids[np.concatenate(there)] if there else ids
    return found


def _begin_warm(comm: MPI.Intracomm, store: Store, options: WorkloadOptions, known: Ids, say: Say | None) -> None:
    """Collective. Say what is there, and bring it into memory if that was asked for."""
    count = distinct(comm, known)
    text = f"warm start: {count:,} blocks of the trace are on disk"
    if options.warm is not None:
        done = store.warm(budget=None if options.warm == "all" else options.warm)
        text += f"; {done.blocks:,} blocks, {format_size(done.bytes)}, were brought into memory"
    if say is not None:
        say(text)


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
    if setting.dram_per_rank < needed and setting.disk is None:
        say(f"the trace needs {format_size(needed)} per rank to keep every block: expect evictions")
    if setting.first:
        say(f"going on behind request {setting.first:,}, where an earlier run has ended")


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
