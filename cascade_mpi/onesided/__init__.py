"""The one-sided protocol as compiled calls: get, look-up for writers, publish, remove, pin, batches.

Each kernel issues its own MPI calls and touches memory of its own node by load and store. Covers reading and the
single steps of writing, a module for each noun; the order of a put, a delete and a reclaim is in `writer` and `cells`.
`onesided_python` does the same steps with mpi4py, module by module.

Costs in MPI calls are for another node; on the own node there are none, but for the CAS.
"""

from cascade_mpi.onesided.batch import BATCH, W_BUCKET_COPY, W_DESCRIPTOR, W_SLOT, W_WORD, WORK_WORDS
from cascade_mpi.onesided.claims import CLAIM_TICKS, end_claim
from cascade_mpi.onesided.copies import note_origin
from cascade_mpi.onesided.hints import hint_gone, poll, touch
from cascade_mpi.onesided.lookup import find, find_copies, slot_of, slot_of_copy
from cascade_mpi.onesided.lookup_many import describe_many, probe_many
from cascade_mpi.onesided.mpi import DATA, INDEX, PINS
from cascade_mpi.onesided.pins import SLOTS_PER_PEER, pin, unpin
from cascade_mpi.onesided.read import get, get_pinned
from cascade_mpi.onesided.read_many import get_many
from cascade_mpi.onesided.swaps import publish, remove, swap
from cascade_mpi.onesided.words import DESCRIBE, DESCRIBE_ANY, FETCH, RANGE, REALTIME_COARSE, TICKS, WHOLE

__all__ = [
    "BATCH", "CLAIM_TICKS", "DATA", "DESCRIBE", "DESCRIBE_ANY", "FETCH", "INDEX", "PINS", "RANGE", "REALTIME_COARSE",
    "SLOTS_PER_PEER", "TICKS", "WHOLE", "WORK_WORDS", "W_BUCKET_COPY", "W_DESCRIPTOR", "W_SLOT", "W_WORD",
    "describe_many", "end_claim", "find", "find_copies", "get", "get_many", "get_pinned", "hint_gone", "note_origin",
    "pin", "poll", "probe_many", "publish", "remove", "slot_of", "slot_of_copy", "swap", "touch", "unpin",
]  # fmt: skip
