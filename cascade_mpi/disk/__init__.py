"""The disk tier of a store: blocks in segment files that all ranks see, and the cells that stand for them.

The protocol is on a page of its own (`docs/disk.md`). The files are in `segments`, which knows neither MPI nor stores.
"""
