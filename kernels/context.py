"""What a kernel knows of a store, and the scratch memory that each calling thread brings.

Both are arrays of 64-bit words that Python fills and kernels read by address. Covers their fields;
does not cover who fills them (`cascade_mpi.window`, `cascade_mpi.store`).
"""

from __future__ import annotations

from itertools import count

_field = count()

# The context: one per store, constant while the store is open (but for POLL and HOOKS).
RANKS = next(_field)
RANK = next(_field)
BUCKETS = next(_field)  # per rank, a power of two
PAGES = next(_field)  # per rank
CELLS = next(_field)  # per rank: its pages, and behind them its disk cells
PAGE_BYTES = next(_field)
GONE_AT = next(_field)  # byte offsets in every rank's data memory
TOUCH_AT = next(_field)
DESCRIPTOR_AT = next(_field)
ARENA_AT = next(_field)
INDEX_BASES = next(_field)  # address of a table: where each rank's memory is mapped here, 0 if it is not
DATA_BASES = next(_field)
PIN_BASES = next(_field)
INDEX_WIN = next(_field)  # MPI handles, as integers
DATA_WIN = next(_field)
PIN_WIN = next(_field)
BYTE = next(_field)
UINT64 = next(_field)
PROBE_COMM = next(_field)
GET = next(_field)  # addresses of MPI functions
PUT = next(_field)
FLUSH = next(_field)
CAS = next(_field)
IPROBE = next(_field)
ANY_SOURCE = next(_field)
ANY_TAG = next(_field)
ATTEMPT = next(_field)  # ticks from the look at a bucket to the re-check after which a read is made again
POLL = next(_field)  # 1: public calls end with an Iprobe, so that peers' CASes proceed
CLOCK = next(_field)  # address of libc's clock_gettime()
EPOCH = next(_field)  # the second in which the store was opened, the same on all ranks: the start of all ticks
VERIFY = next(_field)  # 1: compare the payload checksum on every read
HOOKS = next(_field)  # address of the test hooks, 0 in production
COPY_BUCKETS = next(_field)  # of the node's copy table, on each rank; 0: copies are off
COPY_RANKS = next(_field)  # how many ranks of this node share it, and the address of their numbers (int64)
COPY_RANKS_AT = next(_field)
COPY_AFTER = next(_field)  # remote reads of a block after which it is copied
READ_COUNTS = next(_field)  # address of a u64, the reads counted, and READ_COUNT_BYTES counters behind it
CONTEXT_WORDS = next(_field)

_field = count()

# Scratch of one thread, in words from its address.
LENGTH = next(_field)  # results: length of the block, its word, slot, home, bucket
WORD = next(_field)
SLOT = next(_field)
HOME = next(_field)
BUCKET = next(_field)
FOUND = next(_field)  # number of entries of FOUND_WORDS
FREE_SLOT = next(_field)  # lowest empty slot, -1 if none
FOUND_LIVE = next(_field)  # 1: the block of the lowest word found has not expired
FOUND_SEQUENCE = next(_field)  # the highest sequence of the blocks found; not of a word that was known
MPI_ERROR = next(_field)
BEGAN = next(_field)  # tick at which the last read looked at the word for the first time
COPY_ASKED = next(_field)  # 1: the origin of the copy that was read last was asked by MPI
KEEP_ALL = next(_field)  # 1: every block of another node that is read whole is to be copied
CLAIMING = next(_field)  # 1: this read has claimed the block for its node
FLAG = next(_field)  # of Iprobe
STATUS = next(_field)  # an MPI_Status, at most 64 bytes
_field = count(STATUS + 8)
ORIGIN = next(_field)  # of a compare and swap
COMPARE = next(_field)
RESULT = next(_field)
RELOADED = next(_field)
TOUCHES = next(_field)  # entries of TOUCH_RING
TOUCH_VALUE = next(_field)
COUNTERS = next(_field)
# Counters, in words from COUNTERS.
C_HITS_SELF, C_HITS_NODE, C_HITS_REMOTE = 0, 1, 2
C_BYTES_SELF, C_BYTES_NODE, C_BYTES_REMOTE = 3, 4, 5
C_MISSES, C_RETRIES, C_EXHAUSTED, C_BAD_WORDS, C_CORRUPT, C_COLLISIONS, C_EXPIRED = range(6, 13)
C_COPY_HITS, C_COPY_BYTES, C_COPY_FREE, C_STALE_COPIES, C_ALIAS_READS = range(13, 18)
COUNTER_WORDS = 24
COUNTER_NAMES = {
    "hits_self": C_HITS_SELF, "hits_node": C_HITS_NODE, "hits_remote": C_HITS_REMOTE,
    "bytes_self": C_BYTES_SELF, "bytes_node": C_BYTES_NODE, "bytes_remote": C_BYTES_REMOTE,
    "misses": C_MISSES, "recheck_retries": C_RETRIES, "retries_exhausted": C_EXHAUSTED,
    "bad_words": C_BAD_WORDS, "corrupt": C_CORRUPT, "fingerprint_collisions": C_COLLISIONS,
    "expired_reads": C_EXPIRED,
    "copy_hits": C_COPY_HITS, "copy_bytes": C_COPY_BYTES, "copy_hits_without_mpi": C_COPY_FREE,
    "stale_copies": C_STALE_COPIES, "alias_reads": C_ALIAS_READS,
}  # fmt: skip
_field = count(COUNTERS + COUNTER_WORDS)
BUCKET_COPY = -(-next(_field) // 8) * 8  # 16 words, on a cache line
DESCRIPTOR_COPY = BUCKET_COPY + 16  # 16 words
FOUND_WORDS = DESCRIPTOR_COPY + 16  # pairs (slot, word), at most 16
FOUND_LENGTHS = FOUND_WORDS + 32  # of the blocks of FOUND_WORDS, 0 for a word that was known
DIMS = FOUND_LENGTHS + 16  # dimensions of a descriptor to write: 7 x u32
TOUCH_RING = DIMS + 4  # pairs (rank, page) of touches to send
TOUCH_RING_ENTRIES = 64
TOUCH_FILTER = TOUCH_RING + 2 * TOUCH_RING_ENTRIES  # pairs (word, tick) sent lately
TOUCH_FILTER_ENTRIES = 256
TIMESPEC = TOUCH_FILTER + 2 * TOUCH_FILTER_ENTRIES  # seconds and nanoseconds
COPIES_COPY = -(-(TIMESPEC + 2) // 8) * 8  # 16 words: a bucket of the copy table
ORIGIN_COPY = COPIES_COPY + 16  # 16 words: the descriptor of a copy's origin
SCRATCH_WORDS = ORIGIN_COPY + 16
READ_COUNT_BYTES = 1 << 14

# Results of the kernels; a value >= 0 is a number of bytes (or what the kernel says).
MISS, WRONG_SIZE, CHANGED, MPI_FAILED, CORRUPT = -1, -2, -3, -4, -5
EXPIRED = -6  # between the steps of a get, which says MISS
DUE, CLAIMED = -7, -8  # read, and to be copied for this node; not read: another rank of the node is about to
ALIAS = -9  # between the steps of a get: the descriptor in the scratch has the key of the content
ON_DISK = -10  # not read: the descriptor in the scratch says where on disk the block is
# Of get_many only: a result of WRONG_FROM or less is WRONG_FROM - length, a wrong size. All others are above it.
WRONG_FROM = -16

# Hooks: a test area of words. Mode of a point: 0 nothing, n > 0 spin at random up to n, -1 wait at a gate.
H_READER = 0  # between the copy and the re-check
H_ARRIVED = 4  # a gate counts arrivals here ...
H_RELEASED = 5  # ... and waits until as many were released
H_RANDOM = 6
H_PASSED = 7  # times that a spinning hook was passed
HOOK_WORDS = 8
