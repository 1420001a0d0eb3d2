"""The disk tier's files: what is in them, how they are written, found again and kept.

Pure: no MPI, no clock, no global state but the list of locks that this process holds (see `lock`).
"""
