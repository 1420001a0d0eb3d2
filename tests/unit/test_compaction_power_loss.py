"""Compaction and power losses: nothing that was acknowledged is lost, wrong or comes back, wherever the lights go out.

Ranks put, delete, sync and compact, one piece at a time between the other operations; or a directory is compacted as a
whole. The disk is that of `power_loss`, the store that of `compacting`.
"""

from __future__ import annotations

import errno
from itertools import count
from typing import Any

import pytest
from compacting import STORE, Rank, Tier
from disk_faults import FailingFiles, Plan
from power_loss import EveryChooser, Replay, survey
from promises import Acknowledged
from recorded_disk import Disk, RecordingFiles
from test_segment_power_loss import Job, is_sync, judge, words

from cascade_mpi.errors import CascadeError, DamagedError
from cascade_mpi.segments.format import MIN_SEGMENT_BYTES, Location
from cascade_mpi.segments.offline import compact_directory
from cascade_mpi.segments.reader import open_segment
from cascade_mpi.segments.recovery import latest, recover
from cascade_mpi.segments.source import Item


def notes_of(disk: Disk) -> tuple[Any, ...]:
    return tuple(event.note for event in disk.trace if event.kind == "note")


@pytest.mark.parametrize("one_log", [True, False], ids=["one log", "two logs"])
@pytest.mark.parametrize("seed", range(4))
def test_a_running_store(seed: int, one_log: bool) -> None:
    disk = Disk()
    tier = Tier(disk, seed, one_log=one_log)
    tier.work(120)
    tier.check()
    tier.finish()
    tier.check()
    done = [rank.compactor.done for rank in tier.ranks]
    assert sum(each.segments for each in done) > 5, done
    outcome = survey(disk, judge, seed=seed, count=600)
    assert not outcome.bad, str(outcome)
    print(outcome, len(disk.trace), done)
