"""`python -m bench`: the command line of the benchmark programs.

Covers options and who may talk under an MPI launcher. Does not cover what the programs do: each is a
module of this package that is imported when it is asked for, so that one program needs only its own.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from cascade_mpi.cli import Job, parse
from cascade_mpi.config import parse_size
from cascade_mpi.errors import ConfigError

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows to this file.")]


def _status(wrong: str = "contents were wrong", goal: str = "a goal") -> str:
    return f"Exit status: 1 if {wrong}, else 0; {goal} that is missed does not change it."


app = typer.Typer(
    name="bench",
    help="Benchmarks of Cascade; run them with mpiexec.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> int:
    """Parse on every rank, quietly on all but the first, then run; the exit status."""
    job, status = parse(app, "python -m bench")
    return _run(job) if job is not None else status


def _run(job: Job) -> int:
    """Collective. The job's exit status; an error on one rank ends the job: the others would wait for ever."""
    from mpi4py import MPI

    try:
        return job()
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        if MPI.COMM_WORLD.size > 1:
            MPI.COMM_WORLD.Abort(1)
        return 1


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(parse_size(each) for each in text.split(","))
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    if min(sizes) < 1:
        raise typer.BadParameter(f"{text}: a block has 1 byte or more")
    return sizes


@app.command(epilog=_status())
def micro(
    context: typer.Context,
    json_file: _Json = None,
    pairs: Annotated[int, typer.Option(min=1, help="Interleaved pairs of samples behind each median.")] = 15,
    working_set: Annotated[str, typer.Option(help="Bytes on each rank that blocks are drawn from in turn.")] = "1GiB",
    sizes: Annotated[str, typer.Option(help="Blocks of get_self, get_node and put_self.")] = "1MiB,16MiB,64MiB",
    remote_sizes: Annotated[str, typer.Option(help="Blocks of get_remote.")] = "1MiB,4MiB,16MiB",
    copy_sizes: Annotated[str, typer.Option(help="Copies of the thread curve.")] = "4MiB,16MiB,64MiB,256MiB",
    operations: Annotated[int, typer.Option(min=1, help="Small operations in one timed sample.")] = 256,
    case: Annotated[list[str] | None, typer.Option(help="Only this case; may be repeated.")] = None,
) -> None:
    """Time single operations of the store against the copies and MPI calls that they are made of."""
    from bench.micro import CASES, Options, run

    unknown = sorted(set(case or ()) - set(CASES))
    if unknown:
        raise typer.BadParameter(f"--case {unknown[0]}: it must be one of {', '.join(CASES)}")
    options = Options(
        pairs=pairs,
        working_set=_sizes(working_set)[0],
        sizes=_sizes(sizes),
        remote_sizes=_sizes(remote_sizes),
        copy_sizes=_sizes(copy_sizes),
        operations=operations,
        cases=tuple(case or CASES),
    )
    context.obj.append(lambda: run(options, json_file))


@app.command(epilog=_status())
def copy(
    context: typer.Context,
    json_file: _Json = None,
    pairs: Annotated[int, typer.Option(min=1, help="Interleaved samples behind each median.")] = 15,
    working_set: Annotated[str, typer.Option(help="Bytes that sources and targets are drawn from.")] = "1GiB",
    sizes: Annotated[str, typer.Option(help="Sizes of a copy.")] = "4MiB,16MiB,64MiB,256MiB",
) -> None:
    """Time a large copy by 1, 2, ... threads: as many as this process has cores."""
    from bench.micro import Options, run

    options = Options(pairs=pairs, working_set=_sizes(working_set)[0], copy_sizes=_sizes(sizes), cases=("copy",))
    context.obj.append(lambda: run(options, json_file))


@app.command("hot-prefix", epilog=_status())
def hot_prefix(
    context: typer.Context,
    json_file: _Json = None,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of the prefix.")] = 64,
    block_bytes: Annotated[str, typer.Option(help="Bytes of a block.")] = "1MiB",
    passes: Annotated[int, typer.Option(min=2, help="How often every other rank reads all of them.")] = 15,
) -> None:
    """Let all ranks of other nodes read one rank's prefix: what leaves the owner, and how fast it is from copies."""
    from bench.hot_prefix import run

    context.obj.append(lambda: run(blocks, _sizes(block_bytes)[0], passes, json_file))


@app.command("neighbour-read", epilog=_status("contents were wrong or a block was gone", "a goal of speed"))
def neighbour_read(
    context: typer.Context,
    json_file: _Json = None,
    dram_bytes: Annotated[str, typer.Option(help="Memory of each rank.")] = "128MiB",
    block_bytes: Annotated[str, typer.Option(help="Bytes of a block.")] = "1MiB",
    passes: Annotated[int, typer.Option(min=1, help="How often every rank reads all blocks.")] = 3,
) -> None:
    """Let one rank fill the memory of all, and every rank read all of it: what is found, and how fast."""
    from bench.neighbour_read import run

    context.obj.append(lambda: run(_sizes(dram_bytes)[0], _sizes(block_bytes)[0], passes, json_file))


@app.command("dedup-share", epilog=_status("contents were wrong or not all duplicates saved", "a goal of speed"))
def dedup_share(
    context: typer.Context,
    json_file: _Json = None,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks that each rank puts.")] = 128,
    block_bytes: Annotated[str, typer.Option(help="Bytes of a block.")] = "256KiB",
    share: Annotated[list[int] | None, typer.Option(min=0, max=100, help="Percent of duplicates; repeatable.")] = None,
    passes: Annotated[int, typer.Option(min=1, help="How often each is filled, in turns.")] = 5,
    hash_name: Annotated[str, typer.Option("--hash", help="blake3 or sha256.")] = "blake3",
) -> None:
    """Put blocks of which a share is stored already: what identity="content" saves and costs."""
    from bench.dedup_share import SHARES, run

    if hash_name not in ("blake3", "sha256"):
        raise typer.BadParameter(f"--hash {hash_name}: it must be blake3 or sha256")
    context.obj.append(
        lambda: run(blocks, _sizes(block_bytes)[0], tuple(share or SHARES), passes, json_file, hash_name=hash_name)
    )


@app.command("shared-prefix", epilog=_status())
def shared_prefix(
    context: typer.Context,
    json_file: _Json = None,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of the prefix, all put by one rank.")] = 64,
    block_bytes: Annotated[str, typer.Option(help="Bytes of a block.")] = "1MiB",
    pairs: Annotated[int, typer.Option(min=1, help="Interleaved pairs of samples behind each median.")] = 15,
) -> None:
    """Let all ranks read one rank's prefix at once, beside raw copies or raw MPI Gets of the same bytes."""
    from bench.shared_prefix import run

    context.obj.append(lambda: run(blocks, _sizes(block_bytes)[0], pairs, json_file))


@app.command(epilog=_status())
def disk(
    context: typer.Context,
    json_file: _Json = None,
    folder: Annotated[Path | None, typer.Option("--dir", help="Where; beside the checkout if not given.")] = None,
    total: Annotated[str, typer.Option("--bytes", help="Bytes of each rank in a sample.")] = "256MiB",
    sizes: Annotated[str, typer.Option(help="Sizes of blocks.")] = "1MiB,4MiB,16MiB,64MiB",
    pairs: Annotated[int, typer.Option(min=1, help="Samples of each way, in turns, behind each median.")] = 5,
    case: Annotated[list[str] | None, typer.Option(help="flush, cold, hot or start; may be repeated.")] = None,
) -> None:
    """Flush to disk and read back, cold and hot, beside plain files, HDF5 and a file per block (room: 30 x bytes)."""
    from bench.disk import CASES, Options, run

    unknown = sorted(set(case or ()) - set(CASES))
    if unknown:
        raise typer.BadParameter(f"--case {unknown[0]}: it must be one of {', '.join(CASES)}")
    options = Options(total=_sizes(total)[0], sizes=_sizes(sizes), pairs=pairs, cases=tuple(case or CASES))
    context.obj.append(lambda: run(options, folder, json_file))


@app.command("disk-restart", epilog=_status("a block was missing or wrong"))
def disk_restart(
    context: typer.Context,
    json_file: _Json = None,
    folder: Annotated[Path | None, typer.Option("--dir", help="Where; beside the checkout if not given.")] = None,
    blocks: Annotated[str, typer.Option(help="Blocks in the directory.")] = "1000,10000,100000,1000000",
    times: Annotated[int, typer.Option(min=1, help="Restarts behind each median.")] = 3,
) -> None:
    """Open a store on a directory of many blocks: seconds for footers, exchange and index."""
    from bench.disk_restart import run

    context.obj.append(lambda: run([int(each) for each in blocks.split(",")], times, folder, json_file))


@app.command(epilog=_status("contents were wrong or a protected block was gone", "a share of hits"))
def oversubscription(
    context: typer.Context,
    json_file: _Json = None,
    dram: Annotated[str, typer.Option(help="Arena of each rank.")] = "32MiB",
    block_bytes: Annotated[str, typer.Option(help="Bytes of a block.")] = "64KiB",
    policy: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which blocks are drawn.")] = 1,
) -> None:
    """Put and read 2 and 4 times what fits, also with protected blocks: hits, evictions, contents."""
    from bench.oversubscription import run
    from cascade_mpi.policies.family import STORE_POLICIES

    unknown = sorted(set(policy or ()) - set(STORE_POLICIES))
    if unknown:
        raise typer.BadParameter(f"--policy {unknown[0]}: it must be one of {', '.join(STORE_POLICIES)}")
    names = policy or list(STORE_POLICIES)
    context.obj.append(lambda: run(_sizes(dram)[0], _sizes(block_bytes)[0], names, seed, json_file))


@app.command("stale-copies")
def stale_copies(
    context: typer.Context,
    json_file: _Json = None,
    rounds: Annotated[int, typer.Option(min=1, help="Writes, each raced by reads of all other ranks.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Who writes what.")] = 1,
) -> None:
    """Replace and delete blocks while they are copied and copies are read: nothing old after a call has returned."""
    from bench.stale import run

    context.obj.append(lambda: run(rounds, seed, json_file))


@app.command(context_settings=_PASS_ON)
def torture(context: typer.Context) -> None:
    """Race readers, writers and deleters on few keys, and check every history (options: torture --help)."""
    _delegate(context, "torture")


@app.command(context_settings=_PASS_ON)
def crash(context: typer.Context) -> None:
    """Kill jobs with SIGKILL, restart them on other ranks, and see what is there (options: crash --help)."""
    _delegate(context, "crash")


@app.command(context_settings=_PASS_ON)
def mutations(context: typer.Context) -> None:
    """Break the protocol on purpose, one rule at a time, and see a test find it (options: mutations --help)."""
    _delegate(context, "mutations")


@app.command(context_settings=_PASS_ON)
def traces(context: typer.Context) -> None:
    """Time the trace readers: requests a second of each format (options: traces --help)."""
    _delegate(context, "traces")


@app.command(context_settings=_PASS_ON)
def pressure(context: typer.Context) -> None:
    """Time puts into a full arena, with and without eviction ahead of them (options: pressure --help)."""
    _delegate(context, "pressure")


@app.command(context_settings=_PASS_ON)
def policies(context: typer.Context) -> None:
    """Compare the eviction policies on a trace: hits and speed (options: policies --help)."""
    _delegate(context, "policies")


@app.command("store-policies", context_settings=_PASS_ON)
def store_policies(context: typer.Context) -> None:
    """Compare the store's policies with the exact ones on a trace (options: store-policies --help)."""
    _delegate(context, "store_policies")


@app.command("policy-training", context_settings=_PASS_ON)
def policy_training(context: typer.Context) -> None:
    """Compare the learned policy with its bounds on two halves of a trace (options: policy-training --help)."""
    _delegate(context, "policy_training")


def _delegate(context: typer.Context, name: str) -> None:
    """Hand the arguments to `main(arguments)` of the module `bench.NAME`."""
    module, arguments = _module(name), list(context.args)
    context.obj.append(lambda: int(module.main(arguments) or 0))


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"bench.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"bench.{name}":
            raise
        raise typer.BadParameter(f"this checkout has no bench/{name}.py") from None


if __name__ == "__main__":
    sys.exit(main())
