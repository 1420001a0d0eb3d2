"""`cascade workload`: replay a request trace against the store of all ranks.

Covers its options and exit statuses: 0, 1 for corrupt blocks or a failed run, 2 for a wrong option, a
missing or malformed trace, or an arena that does not fit. Does not cover the replay (see `workload`).
"""

from __future__ import annotations

import json
import traceback
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascade_mpi import models
from cascade_mpi.config import parse_size
from cascade_mpi.errors import CascadeError, ConfigError
from cascade_mpi.job import abort, fail_together, print_error
from cascade_mpi.launcher import check_world

if TYPE_CHECKING:
    from cascade_mpi.workload import WorkloadOptions


def workload(
    context: typer.Context,
    trace: Annotated[str, typer.Option(help="Trace file in Mooncake's format, or none: a synthetic chat.")] = "none",
    block_bytes: Annotated[str | None, typer.Option(help="Size of a block, such as 4KiB. [default: 64KiB]")] = None,
    model: Annotated[str | None, typer.Option(help=f"Block size of a model: {', '.join(models.MODELS)}.")] = None,
    block_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens in a block of that model.")] = None,
    scale: Annotated[str | None, typer.Option(help="Shrink the model's block, such as 1/64.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Replay only the first N requests.")] = None,
    dram: Annotated[str, typer.Option(help="Arena of each rank, such as 2GiB; auto: what the trace needs.")] = "auto",
    dram_total: Annotated[str | None, typer.Option(help="Arena of all ranks together, instead of --dram.")] = None,
    verify: Annotated[str, typer.Option(help="Check the contents that come back: full, sample or off.")] = "full",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the synthetic trace.")] = 0,
    window: Annotated[
        int | None, typer.Option(min=1, help="Requests of a rank between two barriers. [default: 32 / ranks]")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result to this file.")
    ] = None,
    windows: Annotated[str | None, typer.Option(help="Window layout: auto, allocate or shared.")] = None,
    progress: Annotated[str | None, typer.Option(help="MPI progress: auto, thread or none.")] = None,
    checksum: Annotated[str | None, typer.Option(help="Checksum of a block: later, inline or off.")] = None,
    copy_threads: Annotated[str | None, typer.Option(help="Threads of a large copy: auto or a number.")] = None,
    when_full: Annotated[str | None, typer.Option(help="A put into a full arena: evict or refuse.")] = None,
) -> None:
    """Replay a request trace against the store of all ranks; check every byte that comes back."""
    from cascade_mpi.workload import DEFAULT_BLOCK_BYTES, WorkloadOptions

    settings = {
        "windows": windows,
        "progress": progress,
        "checksum": checksum,
        "copy_threads": int(copy_threads) if copy_threads and copy_threads.isdecimal() else copy_threads,
        "when_full": when_full,
    }
    try:
        options = WorkloadOptions(
            trace=_trace_file(trace),
            block_bytes=_block_size(block_bytes, model, block_tokens, scale) or DEFAULT_BLOCK_BYTES,
            requests=requests,
            dram=None if dram == "auto" else parse_size(dram),
            dram_total=None if dram_total is None else parse_size(dram_total),
            verify=verify,  # type: ignore[arg-type]  # the options check it
            seed=seed,
            window=window,
            json=json_file,
            store={name: value for name, value in settings.items() if value is not None},
        )
    except CascadeError as error:
        raise typer.BadParameter(str(error)) from None
    context.obj.append(lambda: run(options))


def _trace_file(name: str) -> Path | None:
    if name == "none":
        return None
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"trace {name}: {'not a file' if path.exists() else 'no such file'}")
    return path


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
    from mpi4py import MPI

    from cascade_mpi.workload import run_workload
    from cascade_mpi.workload_report import show

    comm = MPI.COMM_WORLD
    try:
        check_world(comm.size, MPI.Get_library_version())
        result = run_workload(comm, options, say=lambda line: print(line, flush=True))
    except CascadeError as error:
        return fail_together(comm, error)
    except Exception:
        traceback.print_exc()
        abort(comm, 1)
    if comm.rank == 0:
        show(result)
        if options.json is not None and not _write_json(options.json, result.record()):
            return 1
    return 1 if result.corrupt else 0


def _write_json(path: Path, record: dict[str, Any]) -> bool:
    try:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        print_error(f"--json {path}: {error.strerror}")
        return False
    return True
