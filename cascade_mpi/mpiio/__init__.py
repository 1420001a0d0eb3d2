"""Segments that all ranks write together.

Covers what needs MPI for a file. Does not cover the format, nor one rank's log on a POSIX directory (see `segments`).
"""
