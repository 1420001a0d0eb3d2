"""MPI windows: creation in both layouts, hints, who is mapped where, flush-free access to the own memory, free.

Covers everything that touches `MPI.Win` objects as such. Does not cover what stands in the memory
(see `layout`, `cells`) nor the one-sided operations of a request (see `onesided`).

Two layouts. "allocate": one `Win.Allocate` on the whole communicator, and `Shared_query` for loads and
stores to peers of the node (MPICH 4.2 and newer). "shared": `Win.Allocate_shared` on the node for loads
and stores, and `Win.Create` of the same memory on the communicator for traffic between nodes. Every
compare-and-swap goes through the communicator's window in both: atomics of two windows on one word are
not atomic with each other.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from cascade_mpi.errors import ProtocolError
from cascade_mpi.layout import MIN_PAGE_BYTES

LAYOUTS = ("allocate", "shared")
_COMMON_HINTS = {
    "same_size": "true",
    "same_disp_unit": "true",
    "alloc_shared_noncontig": "true",
    # Open MPI's: atomics are of one element of one type. Without it the CAS of a word's owner is a plain read and write
    # under a lock that the CASes of other nodes do not take, and updates are lost.
    "acc_single_intrinsic": "true",
}
_INDEX_HINTS = {
    "accumulate_ordering": "none",
    "accumulate_ops": "same_op_no_op",
    "which_accumulate_ops": "cswap,no_op",
}


@dataclass
class Window:
    """One window: this rank's memory in it, and where the peers' memory begins.

    `table` is int64[ranks, 2]: the address at which a rank's memory is mapped here (0: it is not), and the
    displacement in its window at which it begins (some MPIs return memory that is not page-aligned).
    """

    name: str
    world: MPI.Win
    node: MPI.Win | None
    memory: npt.NDArray[np.uint8]
    table: npt.NDArray[np.int64]
    hints: dict[str, str]

    @property
    def handle(self) -> int:
        """The MPI handle through which traffic between ranks and every CAS goes."""
        return handle_of(self.world)

    def free(self) -> None:
        """Collective. End the access epoch and free the window; its memory is gone afterwards."""
        self.memory = np.empty(0, np.uint8)
        self.table[:] = 0
        self.world.Unlock_all()
        self.world.Free()
        if self.node is not None:
            self.node.Unlock_all()
            self.node.Free()


def handle_of(thing: MPI.Win | MPI.Datatype | MPI.Comm) -> int:
    """Local. An MPI handle as a signed integer: an int in MPICH, a pointer in Open MPI."""
    handle = int(MPI._handleof(thing))
    if MPI._sizeof(type(thing)) == 4:
        handle = (handle & 0xFFFFFFFF) - ((handle & 0x80000000) << 1)
    return handle


def allocate(name: str, nbytes: int, comm: MPI.Intracomm, node: MPI.Intracomm, layout: str, *, atomics: bool) -> Window:
    """Collective. A zeroed, pre-faulted window of `nbytes` on every rank; CAS hints only with `atomics`.

    The peers of `node` whose memory is really mapped (a random number of theirs was read through the
    mapping: older MPICH answers `Shared_query` with the caller's own memory) have their address in the
    table; the others have 0.
    """
    info = MPI.Info.Create()
    hints = _COMMON_HINTS | (_INDEX_HINTS if atomics else {})
    for key, value in hints.items():
        info.Set(key, value)
    nbytes = max(-(-nbytes // MIN_PAGE_BYTES) * MIN_PAGE_BYTES, MIN_PAGE_BYTES)
    room = nbytes + MIN_PAGE_BYTES  # to begin at a page wherever MPI puts it
    shared: MPI.Win | None = None
    try:
        if layout == "allocate":
            world = MPI.Win.Allocate(room, 1, info, comm)
            whole = _view(world.tomemory())
        else:
            shared = MPI.Win.Allocate_shared(room, 1, info, node)
            whole = _view(shared.tomemory())
            world = MPI.Win.Create(whole, 1, info, comm)
            shared.Lock_all(MPI.MODE_NOCHECK)
        taken = world.Get_info()
        accepted = {key: str(taken.Get(key)) for key in hints if taken.Get(key) is not None}
        taken.Free()
    finally:
        info.Free()
    world.Lock_all(MPI.MODE_NOCHECK)
    shift = -whole.ctypes.data % MIN_PAGE_BYTES
    memory = whole[shift : shift + nbytes]
    # The owner touches every page first: from its NUMA node, at open, not on the path of a put. Every byte,
    # not one a page: a window of one rank is plain memory of this process, which was used before.
    memory[:] = 0
    table = np.zeros((comm.size, 2), np.int64)
    table[:, 1] = comm.allgather(shift)
    _map_peers(table, memory, world if shared is None else shared, comm, node, in_node=shared is not None)
    return Window(name, world, shared, memory, table, accepted)


def _view(memory: MPI.memory) -> npt.NDArray[np.uint8]:
    return np.asarray(memory).view(np.uint8)


def _map_peers(
    table: npt.NDArray[np.int64],
    memory: npt.NDArray[np.uint8],
    window: MPI.Win,
    comm: MPI.Intracomm,
    node: MPI.Intracomm,
    *,
    in_node: bool,
) -> None:
    members = node.allgather(comm.rank)
    nonce = secrets.randbits(63)
    memory[:8].view(np.int64)[0] = nonce
    nonces = comm.allgather(nonce)  # also a barrier: every nonce is in its memory
    for node_rank, rank in enumerate(members):
        try:
            peer, _ = window.Shared_query(node_rank if in_node else rank)
        except MPI.Exception:
            continue  # stays unmapped: its memory is reached by Get
        shift = int(table[rank, 1])
        if peer.nbytes >= shift + 8 and int(_view(peer)[shift : shift + 8].view(np.int64)[0]) == nonces[rank]:
            table[rank, 0] = peer.address + shift
    table[comm.rank, 0] = memory.ctypes.data
    comm.Barrier()  # everybody has read the nonces
    memory[:8] = 0
    comm.Barrier()  # and nobody sees one as data


def choose_layout(requested: str, comm: MPI.Intracomm, node: MPI.Intracomm) -> tuple[str, str]:
    """Collective. The window layout to use and why: the requested one, or the first that maps all peers of the node.

    Raises
    ------
    ProtocolError
        On all ranks, if the requested layout does not map the memory of the node's ranks.
    """
    reasons = []
    for layout in LAYOUTS if requested == "auto" else (requested,):
        try:
            trial = allocate("trial", MIN_PAGE_BYTES, comm, node, layout, atomics=False)
        except MPI.Exception as error:  # collective creation fails on all ranks alike
            reasons.append(f"{layout}: {error}")
            continue
        peers = node.allgather(comm.rank)
        mapped = int(np.count_nonzero(trial.table[peers, 0]))
        everywhere = comm.allreduce(int(mapped == len(peers)), MPI.MIN)
        trial.free()
        if everywhere:
            why = "requested" if requested != "auto" else "maps all peers of the node"
            return layout, "; ".join([*reasons, why])
        reasons.append(f"{layout}: a peer of the node is not mapped")
    which = "no window layout" if requested == "auto" else "the window layout asked for never"
    raise ProtocolError(
        f"{which} gives load/store access to the ranks of a node ({'; '.join(reasons)}): "
        + ('use windows="auto"' if requested == "allocate" else "use an MPI whose Win.Allocate_shared works")
    )
