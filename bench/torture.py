"""`python -m bench torture`: race readers, writers and deleters on few keys, and judge every key's history.

Covers the phases (arena, sizes, what a full arena does), the exchange of notes, the verdict and its
report. Does not cover what the racers do (`racers`), where they are paused (`pauses`), the rules of a
history (`history`), nor the rounds of two putters (`rounds`). All ranks must be on one machine: times of
different ranks are compared.

Half the ranks write, the others read. Two ranks of the same node are neighbours in neither half where the
launcher deals ranks to nodes in turn, so that each reader has writers on its own node and on another.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from bench.history import Violation, check
from bench.stamped import unstamp, warm
from cascade_mpi.cli import parse

if TYPE_CHECKING:
    from mpi4py import MPI

    from bench.pauses import Pauses
    from cascade_mpi.store import Store

KIB, MIB = 1 << 10, 1 << 20
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_READS_A_STEP = 20  # a phase is not over before the writers have made one step for so many reads
_KEPT = 20  # problems that are shown

# From the store's counters, summed over the ranks.
_COUNTERS = (
    "recheck_retries", "retries_exhausted", "fingerprint_collisions", "bad_words", "corrupt", "lost_cas",
    "bucket_overflows", "swept", "evicted", "cell_allocations", "cell_reuses", "dedup_hits",
)  # fmt: skip

_POOL = ("moved", "recalls", "returned")  # of leased extents


@dataclass(frozen=True)
class Phase:
    """One store that is tortured: `share` of all reads, with values of `smallest` to `largest` bytes.

    With `by_content` each value is put under two keys, in a namespace that stores contents once.
    """

    name: str
    share: float
    dram_bytes: int
    keys: int
    smallest: int
    largest: int
    when_full: str
    rest_ms: float = 1.0
    index_blocks: int = 16  # a bucket on each of 4 ranks: keys are neighbours
    by_content: bool = False


PHASES = (
    # Cells of a few pages that come back almost as soon as a put needs them.
    Phase("tiny", 0.45, 96 * KIB, 10, 64, 16 * KIB, "refuse", 0.1),
    Phase("evict", 0.30, 64 * KIB, 24, 64, 16 * KIB, "evict"),
    # Names of contents that are evicted, stored again and named again all the time.
    Phase("names", 0.17, 192 * KIB, 16, 64, 16 * KIB, "evict", 0.1, 512, by_content=True),
    # Copies that last so long that a cell can be reused in their middle.
    Phase("large", 0.08, 10 * MIB, 8, 4 * KIB, 4 * MIB, "refuse"),
)


@dataclass(frozen=True)
class Options:
    """What the command line asks for. `settings` are passed on to every store."""

    reads: int
    seconds: float
    seed: int
    rounds: int
    settings: dict[str, Any]
    json_file: Path | None = None
    phases: tuple[Phase, ...] = PHASES

    @property
    def least_retries(self) -> int:
        """Re-checks that must have failed: 1,000 in a full run."""
        return min(1000, self.reads // 2000)

    @property
    def least_evictions(self) -> int:
        """Blocks that must have been evicted, if a phase does."""
        return min(1000, self.reads // 1000) if any(phase.when_full == "evict" for phase in self.phases) else 0

    @property
    def least_dedup_hits(self) -> int:
        """Values that must have been stored already, if there is a phase for that: 1,000 in a full run."""
        return min(1000, self.reads // 1000) if any(phase.by_content for phase in self.phases) else 0

    @property
    def least_reuses(self) -> int:
        """Cells that must have been reused: 10,000 in a full run."""
        return min(10_000, self.reads // 100)


class Verdict:
    """What is counted in all phases, and what was found wrong. The same on all ranks at the end."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.problems: list[str] = []
        self.classes = {"wrong": 0, "stale": 0, "resurrected": 0, "lost": 0}

    def add(self, counts: dict[str, int]) -> None:
        for name, by in counts.items():
            self.counts[name] = self.counts.get(name, 0) + by

    def __getitem__(self, name: str) -> int:
        return self.counts.get(name, 0)


def run(comm: MPI.Intracomm, options: Options) -> int:
    """Collective. The whole torture; rank 0 prints. The exit status, the same on all ranks."""
    began = time.monotonic()
    boots = set(comm.allgather(BOOT_ID.read_text() if BOOT_ID.exists() else ""))
    if comm.size < 2 or len(boots) > 1:
        why = "one rank cannot race" if comm.size < 2 else "the ranks are on machines with clocks of their own"
        _say(comm, f"torture: {why}: start 2 or more ranks on one machine")
        return 2
    if comm.rank == 0:
        warm()
    comm.Barrier()
    warm()  # from the cache
    verdict = Verdict()
    report: dict[str, Any] = {}
    for number, phase in enumerate(options.phases if options.reads else ()):
        report = _torture(comm, options, phase, options.seed * 100 + number, began + options.seconds, verdict)
    played: dict[str, Any] = {"rounds": 0, "won_by": [0, 0], "problems": []}
    if options.rounds:
        played, report = _play(comm, options, verdict)
    failures = _failures(options, verdict, played, report.get("nodes", 1))
    result = _result(comm, options, verdict, played, report, failures, time.monotonic() - began)
    if comm.rank == 0:
        _print(result)
        if options.json_file is not None:
            options.json_file.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(failures))


def _torture(
    comm: MPI.Intracomm, options: Options, phase: Phase, seed: int, until: float, verdict: Verdict
) -> dict[str, Any]:
    """One phase: open, race (not after `until`), check, judge. The store's report."""
    from bench.pauses import Pauses
    from bench.racers import Racer, Reading, Writing, make_keys
    from cascade_mpi.namespaces import Namespace
    from cascade_mpi.store import Store

    began = time.monotonic()
    settings: dict[str, Any] = {
        name: getattr(phase, name) for name in ("dram_bytes", "when_full", "rest_ms", "index_blocks")
    }
    if phase.by_content:
        settings["namespace"] = Namespace("torture", identity="content", hash="sha256")
    settings["promote_after"] = 1  # on several nodes every block that is read twice has been copied
    meeting = comm.Dup()
    with Store(comm, **(settings | options.settings)) as store:
        report = store.report()
        buckets = store._fabric.buckets
        keys = comm.bcast(make_keys(phase.keys, comm.size, buckets, seed) if comm.rank == 0 else None)
        pauses = Pauses(store, seed * 64 + comm.rank)
        more = (store, keys, phase.smallest, phase.largest, random.Random(seed * 4096 + comm.rank), phase.by_content)
        writers = range(comm.size // 2)
        readers = range(comm.size // 2, comm.size)
        racer: Racer
        reads = -(-int(options.reads * phase.share) // len(readers))
        comm.Barrier()
        raced = time.monotonic()
        if comm.rank in writers:
            writing = racer = Writing(*more)
            steps = reads * len(readers) // _READS_A_STEP // len(writers)
            writing.run(comm.rank + 1, _Over(meeting, steps, until, pauses), prefixes=phase.when_full == "refuse")
        else:
            reading = racer = Reading(*more)
            wanting = _Wanting(store, phase.dram_bytes * 2 // 5)
            reading.run(_Over(meeting, reads, until, pauses, wanting.turn))
            wanting.end()
        comm.Barrier()
        raced = time.monotonic() - raced
        pauses.remove()
        checked = store.check()
        stats = store.stats()
        counts = racer.counts | {name: int(stats[name]) for name in _COUNTERS}
        counts |= {f"copies_{name}": int(stats["copies"][name]) for name in ("promotions", "hits", "stale")}
        counts |= {f"pool_{name}": int(stats["pool"].get(name, 0)) for name in _POOL}
        counts |= {"spun": pauses.spun, **{f"slept_{who}": times for who, times in pauses.slept.items()}}
        if comm.rank in readers:
            counts["reader_retries"] = counts["recheck_retries"]
        comm.Barrier()
    meeting.Free()
    summed = _sum(comm, counts)
    # Only evictions, or puts over other keys' words in a full bucket, make a block leave by itself.
    evicts = phase.when_full == "evict" or summed["bucket_overflows"] > 0
    violations = _judge(comm, racer.log.rows(), phase.keys, evicts=evicts, comes_back=phase.by_content)
    verdict.add(summed)
    _count_problems(comm, phase, racer.wrong, violations, verdict)
    _say(
        comm,
        f"phase {phase.name}: {summed['reads']} reads in {raced:.1f} s ({time.monotonic() - began:.1f} s with "
        f"judging), {summed['hits'] / max(1, summed['reads']):.0%} hits, {summed['reader_retries']} failed "
        f"re-checks, {summed['copies_hits']} reads of {summed['copies_promotions']} copies, "
        f"{summed['cell_reuses']} cell reuses, {summed['pool_moved']} blocks moved out of "
        f"{summed['pool_returned']} leased extents, {checked['words']} words checked",
    )
    return report


class _Over:
    """Tells a racer when to stop: once all ranks have done enough, or the time is over. Varies the pauses."""

    def __init__(
        self, meeting: MPI.Intracomm, enough: int, until: float, pauses: Pauses,
        beside: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        self._meeting, self._enough, self._until, self._pauses = meeting, enough, until, pauses
        self._beside = beside
        self._turn = 0
        self._met: MPI.Request | None = None

    def __call__(self, done: int) -> bool:
        self._turn += 1
        if self._turn % 256 == 0:
            self._pauses.vary()
        if self._beside is not None:
            self._beside(self._turn)
        if self._turn % 16:
            return False
        if self._met is None and (done >= self._enough or time.monotonic() > self._until):
            self._met = self._meeting.Ibarrier()  # and goes on, that the others do not race alone
        return self._met is not None and bool(self._met.Test())


class _Wanting:
    """A reader that in turns wants most of its arena for blocks that nobody else knows, and does not.

    So what writers have leased from it is recalled, moves out, is given back and leased again.
    """

    def __init__(self, store: Store, nbytes: int) -> None:
        self._store, self._block = store, np.zeros(nbytes // 8 * 8, np.uint8)
        self._keys = [f"wanted by {store._comm.rank} {number}" for number in range(2)]

    def turn(self, number: int) -> None:
        """Local. Put or delete them, every 512 turns."""
        if number % 1024 == 0:
            for key in self._keys:
                self._store.put(key, self._block)
        elif number % 1024 == 512:
            self.end()

    def end(self) -> None:
        """Local. Want nothing."""
        for key in self._keys:
            self._store.delete(key)


def _judge(
    comm: MPI.Intracomm, rows: npt.NDArray[np.int64], keys: int, *, evicts: bool, comes_back: bool
) -> list[tuple[int, Violation, int]]:
    """Collective. Each key is judged by one rank: (key, violation, when the notes of the key begin)."""
    mine = comm.alltoall([rows[rows[:, 2] % comm.size == rank] for rank in range(comm.size)])
    together = np.concatenate(mine)
    found = []
    for key in range(comm.rank, keys, comm.size):
        begin, end, _, kind, value = np.ascontiguousarray(together[together[:, 2] == key].T)
        start = int(begin.min()) if len(begin) else 0
        found += [(key, each, start) for each in check(begin, end, kind, value, evicts=evicts, comes_back=comes_back)]
    return found


def _count_problems(
    comm: MPI.Intracomm,
    phase: Phase,
    mixtures: list[str],
    violations: list[tuple[int, Violation, int]],
    verdict: Verdict,
) -> None:
    found = dict.fromkeys(verdict.classes, 0) | {"wrong": len(mixtures)}
    texts = [f"wrong: {text}" for text in mixtures]
    for key, each, start in violations:
        found[each.kind] += 1
        whose = "version {1} of writer {0}".format(*unstamp(each.value)) if each.value else "no value"
        texts.append(
            f"{each.kind} ({each.rule}): key {key}, {whose}, {(each.begin - start) / 1e6:.3f} ms to "
            f"{(each.end - start) / 1e6:.3f} ms"
        )
    for name, by in _sum(comm, found).items():
        verdict.classes[name] += by
    for each_rank in comm.allgather(texts[:_KEPT]):
        verdict.problems += [f"phase {phase.name}: {text}" for text in each_rank]


def _play(comm: MPI.Intracomm, options: Options, verdict: Verdict) -> tuple[dict[str, Any], dict[str, Any]]:
    from bench.pauses import Pauses
    from bench.rounds import play
    from cascade_mpi.store import Store

    began = time.monotonic()
    with Store(comm, dram_bytes=MIB, index_blocks=1, when_full="refuse", **options.settings) as store:
        pauses = Pauses(store, options.seed * 64 + comm.rank + 7)
        played = play(comm, store, options.rounds, options.seed)
        pauses.remove()
        store.check()
        report = store.report()
    verdict.problems += [f"rounds: {text}" for text in played["problems"][:_KEPT]]
    _say(comm, f"rounds: {options.rounds} in {time.monotonic() - began:.1f} s, won by {played['won_by']}")
    return played, report


def _sum(comm: MPI.Intracomm, counts: dict[str, int]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in comm.allgather(counts):
        for name, by in each.items():
            total[name] = total.get(name, 0) + by
    return total


# ---------------------------------------------------------------------------------------------- the verdict


def _failures(options: Options, verdict: Verdict, played: dict[str, Any], nodes: int) -> list[str]:
    """Every demand that is not met, as a line."""
    found = [f"{number} {name}" for name, number in verdict.classes.items() if number]
    if played["problems"]:
        found.append(f"{len(played['problems'])} rounds without agreement")
    for name in ("bad_words", "corrupt"):
        if verdict[name]:
            found.append(f"{verdict[name]} {name}")
    if options.reads:
        reads = verdict["reads"]
        for what, number, least in (
            ("reads", reads, options.reads),
            ("hits", verdict["hits"], -(-reads * 3 // 10)),
            ("re-checks that failed", verdict["reader_retries"], options.least_retries),
            ("cell reuses", verdict["cell_reuses"], options.least_reuses),
            ("dedup hits", verdict["dedup_hits"], options.least_dedup_hits),
            ("evictions", verdict["evicted"], options.least_evictions),
            ("reads of copies", verdict["copies_hits"], options.reads // 1000 if nodes > 1 else 0),
            ("extents given back", verdict["pool_returned"], options.reads // 20_000),
        ):
            if number < least:
                found.append(f"only {number} {what}, {least} are asked for (more --seconds?)")
    return found


def _result(
    comm: MPI.Intracomm, options: Options, verdict: Verdict, played: dict[str, Any], report: dict[str, Any],
    failures: list[str], seconds: float,
) -> dict[str, Any]:  # fmt: skip
    reads = verdict["reads"]
    return {
        "bench": "torture", "ok": not failures, "seed": options.seed, "ranks": comm.size,
        "nodes": report.get("nodes"), "windows": report.get("windows", {}).get("layout"),
        "mpi_calls": report.get("mpi_calls", {}).get("by"), "seconds": round(seconds, 1),
        "reads": reads, "hits": verdict["hits"], "hit_rate": round(verdict["hits"] / reads, 4) if reads else None,
        **verdict.classes,
        "recheck_retries": verdict["reader_retries"], "recheck_retries_of_writers":
            verdict["recheck_retries"] - verdict["reader_retries"],
        **{name: verdict[name] for name in _COUNTERS if name != "recheck_retries"},
        **{name: verdict[name] for name in ("puts", "kept", "refused", "deletes", "contains", "views", "wrong_sizes")},
        **{f"pool_{name}": verdict[f"pool_{name}"] for name in _POOL},
        **{f"copies_{name}": verdict[f"copies_{name}"] for name in ("promotions", "hits", "stale")},
        "paused": {name: verdict[name] for name in ("spun", "slept_manager", "slept_putter")},
        "rounds": played["rounds"], "rounds_won_by": played["won_by"], "rounds_failed": len(played["problems"]),
        "failures": failures, "problems": verdict.problems,
    }  # fmt: skip


def _print(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if name not in ("bench", "failures", "problems"):
            print(f"{name:>28}  {value}")
    for text in result["problems"]:
        print(text)
    print("torture: passed" if result["ok"] else "torture: FAILED: " + "; ".join(result["failures"]), flush=True)


def _say(comm: MPI.Intracomm, text: str) -> None:
    if comm.rank == 0:
        print(text, flush=True)


# -------------------------------------------------------------------------------------------- command line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def torture(
    context: typer.Context,
    reads: Annotated[int, typer.Option(min=0, help="Reads of all ranks together; 0: only the rounds.")] = 1_000_000,
    seconds: Annotated[float, typer.Option(min=1, help="No race after this time; fewer reads fail.")] = 600.0,
    seed: Annotated[int, typer.Option(min=0, help="What is done depends on it; when, on the machine.")] = 1,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of two ranks that put one key at once.")] = 0,
    windows: Annotated[str, typer.Option(help="Window layout: auto, allocate or shared.")] = "auto",
    mpi_calls: Annotated[str, typer.Option(help="Who calls MPI: auto, compiled or python.")] = "auto",
    rest_ms: Annotated[
        float | None, typer.Option(min=0.1, help="Rest of a freed cell, milliseconds; else each phase has its own.")
    ] = None,
    phase: Annotated[list[str] | None, typer.Option(help="Only this phase; may be repeated.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result.")] = None,
) -> None:
    """Race readers, writers and deleters on few keys, and check every key's history as a register."""
    names = [each.name for each in PHASES]
    if unknown := sorted(set(phase or ()) - set(names)):
        raise typer.BadParameter(f"--phase {unknown[0]}: it must be one of {', '.join(names)}")
    chosen = [each for each in PHASES if not phase or each.name in phase]
    total = sum(each.share for each in chosen)
    settings = {"windows": windows, "mpi_calls": mpi_calls} | ({} if rest_ms is None else {"rest_ms": rest_ms})
    phases = tuple(Phase(**{**vars(each), "share": each.share / total}) for each in chosen)
    options = Options(reads, seconds, seed, rounds, settings, json_file, phases)
    context.obj.append(lambda: _start(options))


def _start(options: Options) -> int:
    from mpi4py import MPI

    return run(MPI.COMM_WORLD, options)


def main(arguments: Sequence[str]) -> int:
    """Collective. Parse, then torture; the exit status."""
    job, status = parse(app, "python -m bench torture", arguments)
    return job() if job is not None else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
