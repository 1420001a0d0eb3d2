"""Traces of LLM requests: where the workload takes its block accesses from.

Each reader yields `Request` records in the order of time and raises `TraceError` for anything else;
`deal` gives each rank its share.
"""

from cascade_mpi.traces.deal import Deal, deal
from cascade_mpi.traces.mooncake import read_mooncake
from cascade_mpi.traces.request import Request
from cascade_mpi.traces.synthetic import Chat, synthetic

__all__ = ["Chat", "Deal", "Request", "deal", "read_mooncake", "synthetic"]
