"""The workload: replay a trace of LLM requests against a store that is spread over all ranks, check every byte.

`run_workload` does it with `WorkloadOptions` and returns a `Result`. A rank looks the blocks of a request up,
fetches the contiguous prefix that is there, "computes" the other blocks and puts them.

============  ====================================================================
options       what is to be done          plan       what all ranks agree on before
run           all of it, in order         replay     rounds and meetings
server        one request                 pacing     waiting for arrivals
tally         counts of a rank            result     their sums
sampling      samples meanwhile           live       what rank 0 shows of them
metrics       Prometheus and JSON lines   tables     what it shows at the end
recording     accesses written down       outputs    the files of a run
interrupt     Ctrl-C, SIGTERM, SIGUSR1    peers      ranks that are gone
keeping       what the next job finds     state      how far a replay has come
walltime      how long Slurm still waits
sentinel      the last words of a job     ends       all of these together
============  ====================================================================
"""

from cascade_mpi.workload.options import WorkloadOptions
from cascade_mpi.workload.result import Result
from cascade_mpi.workload.run import run_workload

__all__ = ["Result", "WorkloadOptions", "run_workload"]
