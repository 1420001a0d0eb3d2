"""Segments written through MPI: non-blocking writes of one rank, and segments that all ranks write together.

Covers what needs MPI for a file. Does not cover the format, nor one rank's log on a POSIX directory (see `segments`).
"""
