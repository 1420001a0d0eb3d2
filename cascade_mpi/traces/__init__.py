"""Traces of LLM requests: where the workload takes its block accesses from.

`open_trace` reads a file and `generate` makes requests up; both give a `Trace`, which yields `Request`
records in the order of time and raises `TraceError` for anything else. `deal` gives each rank its share.
"""

from cascade_mpi.traces.chat import Chat, synthetic
from cascade_mpi.traces.deal import Deal, deal
from cascade_mpi.traces.formats import FORMATS, TIME_UNITS, open_trace
from cascade_mpi.traces.generate import KINDS, generate
from cascade_mpi.traces.mooncake import read_mooncake
from cascade_mpi.traces.request import Request
from cascade_mpi.traces.routes import ROUTES
from cascade_mpi.traces.trace import Trace

__all__ = [
    "FORMATS",
    "KINDS",
    "ROUTES",
    "TIME_UNITS",
    "Chat",
    "Deal",
    "Request",
    "Trace",
    "deal",
    "generate",
    "open_trace",
    "read_mooncake",
    "synthetic",
]
