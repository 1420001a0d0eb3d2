"""`cascade workload`: replay a request trace against the store of all ranks.

Covers its options and exit statuses: 0, 1 for corrupt blocks or a failed run, 2 for a wrong option, a
missing or malformed trace, or an arena that does not fit, 75 (run it again: it goes on) after SIGUSR1 where there is a
disk tier, 130 after Ctrl-C, 138 after SIGUSR1 where there is none, 143 after SIGTERM. Does not cover the replay (see
`workload`).
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascade_mpi import models
from cascade_mpi.commands.pairs import parse_pairs
from cascade_mpi.config import Config, parse_size
from cascade_mpi.errors import CascadeError, ConfigError, ProtocolError
from cascade_mpi.job import abort, fail_together, print_error
from cascade_mpi.launcher import check_world
from cascade_mpi.traces import FORMATS, KINDS, ROUTES, TIME_UNITS

if TYPE_CHECKING:
    from cascade_mpi.workload.options import WorkloadOptions

_DEFAULTS = Config()
TRACE, REPLAY, BLOCKS, STORE = "Trace", "Replay", "Blocks", "Store"  # groups of the help
DISK, OUTPUT = "Disk", "Output"
AGAIN = 75  # EX_TEMPFAIL of sysexits.h


def workload(
    context: typer.Context,
    trace: Annotated[
        str | None,
        typer.Option(
            help=f"Trace file, or a generator: {', '.join(KINDS)}.", show_default=KINDS[0], rich_help_panel=TRACE
        ),
    ] = None,
    trace_format: Annotated[
        str, typer.Option("--format", help=f"Of the file: auto, {', '.join(FORMATS)}.", rich_help_panel=TRACE)
    ] = "auto",
    time_unit: Annotated[
        str, typer.Option(help=f"Of its arrival times: {', '.join(TIME_UNITS)}.", rich_help_panel=TRACE)
    ] = "auto",
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="NAME=COLUMN",
            help="A column under another name; may be repeated.",
            rich_help_panel=TRACE,
        ),
    ] = None,
    trace_block_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that a block of the trace stands for.", rich_help_panel=TRACE)
    ] = None,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Skip and count wrong records.", rich_help_panel=TRACE)
    ] = False,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Replay only the first N.",
            show_default="all of a file, 1,000 of a generator",
            rich_help_panel=TRACE,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generator.", rich_help_panel=TRACE)] = 0,
    route: Annotated[
        str, typer.Option(help=f"Who serves a request: {', '.join(ROUTES)}.", rich_help_panel=REPLAY)
    ] = "round-robin",
    timed: Annotated[
        float | None,
        typer.Option(metavar="FACTOR", help="Wait for arrivals, so many times faster.", rich_help_panel=REPLAY),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Requests of a rank between two barriers.",
            show_default="32 over the ranks",
            rich_help_panel=REPLAY,
        ),
    ] = None,
    verify: Annotated[
        str, typer.Option(help="Check the contents that come back: full, sample or off.", rich_help_panel=REPLAY)
    ] = "full",
    block_bytes: Annotated[
        str | None, typer.Option(help="Size of a block, such as 4KiB.", show_default="64KiB", rich_help_panel=BLOCKS)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"Block size of a model: {', '.join(models.MODELS)}.", rich_help_panel=BLOCKS)
    ] = None,
    block_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens in a block of that model.", rich_help_panel=BLOCKS)
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="Shrink the model's block, such as 1/64.", rich_help_panel=BLOCKS)
    ] = None,
    dram: Annotated[
        str, typer.Option(help="Arena of each rank, such as 2GiB; auto: what the trace needs.", rich_help_panel=STORE)
    ] = "auto",
    dram_total: Annotated[
        str | None, typer.Option(help="Arena of all ranks together, instead of --dram.", rich_help_panel=STORE)
    ] = None,
    windows: Annotated[
        str | None,
        typer.Option(
            help="Window layout: auto, allocate or shared.", show_default=_DEFAULTS.windows, rich_help_panel=STORE
        ),
    ] = None,
    progress: Annotated[
        str | None,
        typer.Option(
            help="MPI progress: auto, thread or none.", show_default=_DEFAULTS.progress, rich_help_panel=STORE
        ),
    ] = None,
    checksum: Annotated[
        str | None,
        typer.Option(
            help="Checksum of a block: later, inline or off.", show_default=_DEFAULTS.checksum, rich_help_panel=STORE
        ),
    ] = None,
    copy_threads: Annotated[
        str | None,
        typer.Option(
            help="Threads of a large copy: auto or a number.",
            show_default=str(_DEFAULTS.copy_threads),
            rich_help_panel=STORE,
        ),
    ] = None,
    when_full: Annotated[
        str | None,
        typer.Option(
            help="A put into a full arena: evict or refuse.", show_default=_DEFAULTS.when_full, rich_help_panel=STORE
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings of the store (TOML).", rich_help_panel=STORE)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any setting of the store, as of cascade config; may be repeated.",
            rich_help_panel=STORE,
        ),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Directory for blocks on disk, the same for all ranks.", rich_help_panel=DISK),
    ] = None,
    durability: Annotated[
        str | None,
        typer.Option(
            help="What is written there: none, demote, writeback or writethrough.",
            show_default=_DEFAULTS.durability,
            rich_help_panel=DISK,
        ),
    ] = None,
    warm: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Bring so much of it into each rank's memory first, or all.", rich_help_panel=DISK
        ),
    ] = None,
    flush_every: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Make all durable so often, and at the end; 0: at the end.",
            rich_help_panel=DISK,
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="For making memory durable after a signal.",
            show_default="what Slurm leaves; 20 elsewhere",
            rich_help_panel=DISK,
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Go on where it says; note how far this came.", rich_help_panel=DISK),
    ] = None,
    live: Annotated[
        bool | None,
        typer.Option(
            "--live/--no-live",
            help="Live view. Default: when rank 0 writes to a terminal, which under mpiexec and srun it does not.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result here.", rich_help_panel=OUTPUT)
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the metrics of all ranks here, a line of JSON every 5 s.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    prom_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Prometheus textfile, with {rank} or {node} in its name.", rich_help_panel=OUTPUT
        ),
    ] = None,
    prom_per: Annotated[str, typer.Option(help="Who writes one: rank or node.", rich_help_panel=OUTPUT)] = "rank",
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the store's accesses here, as a trace.", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Replay a request trace against the store of all ranks; check every byte that comes back."""
    from cascade_mpi.workload.options import DEFAULT_BLOCK_BYTES, WorkloadOptions

    named = {
        "windows": windows,
        "progress": progress,
        "checksum": checksum,
        "copy_threads": copy_threads,
        "when_full": when_full,
        "disk": disk,
        "durability": durability,
    }
    try:
        file, kind = _trace(trace)
        options = WorkloadOptions(
            trace=file,
            kind=kind,
            trace_format=trace_format,
            time_unit=time_unit,
            fields=parse_pairs("--field", fields or [], "NAME=COLUMN", empty=False),
            trace_block_tokens=trace_block_tokens,
            lenient=lenient,
            block_bytes=_block_size(block_bytes, model, block_tokens, scale) or DEFAULT_BLOCK_BYTES,
            requests=requests,
            route=route,
            timed=timed,
            dram=None if dram == "auto" else parse_size(dram),
            dram_total=None if dram_total is None else parse_size(dram_total),
            verify=verify,  # type: ignore[arg-type]  # the options check it
            seed=seed,
            window=window,
            json=json_file,
            metrics=metrics,
            record=record,
            state=state,
            warm=warm,
            flush_every=flush_every,
            grace=grace,
            prom_file=prom_file,
            prom_per=prom_per,  # type: ignore[arg-type]  # the options check it
            live=live,
            config=config,
            store=_store(named, parse_pairs("--set", settings or [])),
        )
    except CascadeError as error:
        raise typer.BadParameter(str(error)) from None
    context.obj.append(lambda: run(options))


def _trace(name: str | None) -> tuple[Path | None, str]:
    """The trace file, or None and the generator: a file of that name goes first."""
    if name is None:
        return None, KINDS[0]
    path = Path(name)
    if path.is_file():
        return path, KINDS[0]
    if name in KINDS:
        return None, name
    what = "not a file" if path.exists() else "no such file"
    raise ConfigError(f"trace {name}: {what}, and none of the generators {', '.join(KINDS)}")


def _store(named: dict[str, str | None], pairs: dict[str, str]) -> dict[str, Any]:
    """The settings of the store: those that have an option of their own, and those of `--set`."""
    from cascade_mpi.settings import from_options

    given = {name: text for name, text in named.items() if text is not None}
    for name in given.keys() & pairs:
        raise ConfigError(f"--{name.replace('_', '-')} and --set {name} are both given: give one of them")
    return {name: each.value for name, each in from_options({**given, **pairs}).items()}


def _block_size(block_bytes: str | None, model: str | None, tokens: int | None, scale: str | None) -> int | None:
    """The block size that the options ask for, None when they say nothing."""
    if model is not None:
        if block_bytes is not None:
            raise ConfigError("--block-bytes and --model are both given: give one of them")
        return models.block_bytes(model, tokens, Fraction(1) if scale is None else models.parse_scale(scale))
    if tokens is not None or scale is not None:
        raise ConfigError(f"--{'scale' if tokens is None else 'block-tokens'} needs --model")
    if block_bytes is None:
        return None
    size = parse_size(block_bytes)
    if size < 1:
        raise ConfigError(f"--block-bytes {block_bytes}: it must be 1 byte or more")
    return size


def run(options: WorkloadOptions) -> int:
    """Collective. The exit status, with the result shown by rank 0."""
    from cascade_mpi.workload.ends import Ends

    with Ends() as ends:
        from mpi4py import MPI  # may take seconds on many nodes: a Ctrl-C is answered meanwhile

        from cascade_mpi.workload import run_workload
        from cascade_mpi.workload.tables import show

        comm = MPI.COMM_WORLD
        try:
            check_world(comm.size, MPI.Get_library_version())
            ends.watch(comm)
            result = run_workload(comm, options, say=_say, interruption=ends.interruption)
        except CascadeError as error:
            ends.over()
            status = fail_together(comm, error)
            return 1 if isinstance(error, ProtocolError) else status
        except Exception:
            if not ends.interruption.stopped():  # else it is only that the other ranks ended first
                traceback.print_exc()
            ends.over()
            abort(comm, 1)
        written = True
        try:
            if comm.rank == 0:
                show(result)
                sys.stdout.flush()
                written = options.json is None or _write_json(options.json, result.record())
        finally:
            comm.Barrier()  # with `srun --kill-on-bad-exit` the first bad exit kills all: rank 0 is done by now
            ends.over()
        if result.signal == signal.SIGUSR1 and result.goes_on:
            # And with SIGTERM first: this status is to be that of all ranks, else srun's is that of the signal.
            ends.interruption.ignore()
            return AGAIN
        if result.signal:
            return 128 + result.signal
        return 1 if result.corrupt or result.unwritten or not written else 0


def _say(line: str) -> None:
    print(line, flush=True)


def _write_json(path: Path, record: dict[str, Any]) -> bool:
    from cascade_mpi.workload.outputs import replacing

    try:
        with replacing(path) as out:
            out.write((json.dumps(record, indent=2) + "\n").encode())
    except OSError as error:
        print_error(f"--json {path}: {error.strerror}")
        return False
    return True
