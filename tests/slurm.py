"""A Slurm for tests: the one that runs here, if it may be used, or one of two nodes on this host for a session.

Covers finding, starting and ending it, and one job at a time by srun or sbatch. Does not cover what a job tests.

A site's Slurm is used only if `TEST_SLURM=site` asks for it: its jobs wait in queues and cost somebody's hours.
With `TEST_SLURM=required` a machine that cannot run them fails the tests.
Otherwise root starts one with the script that lies beside the checkout, which installs Slurm's packages where
there are none, and whose "nodes" are both this host.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

import launch
import psutil
import pytest

SITE = "TEST_SLURM"
NODES, CPUS = 2, 4
MANAGER = launch.ROOT / ".." / "shared" / "tools" / "slurm_up.sh"
OURS = "ci"  # the cluster name that script gives
CONFIGURED = Path("/etc/slurm/slurm.conf")
START_LIMIT_S, ASK_LIMIT_S = 180, 20
# With UCX one start in ten or so would die: see jobs/common.sh, which sets this too.
RELIABLE = {"MPIR_CVAR_CH4_NETMOD": "ofi"}
# Each "node" runs in a session of its own, and Linux gives every session a share of the cores of its own (autogroup).
# There, ranks that yield while they wait starve those that they wait for: a replay of 0.3 s took two minutes. A
# control group for all of Slurm makes the nodes one session's work again, as the ranks of a real node are.
AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")
CPU_GROUP = Path("/sys/fs/cgroup/cpu/cascade-slurm-tests")  # of cgroup v1
# Others are passing, SIGNALING and REQUEUED among them.
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
)  # fmt: skip
DAEMONS = ("slurmctld", "slurmscriptd", "slurmd", "slurmstepd", "munged")


class Cluster:
    """A Slurm that answers."""

    def __init__(self, started: bool) -> None:
        self.started = started  # by this session, which then ends it
        self.own = cluster_name() == OURS  # both nodes are this host, and nobody else's jobs run

    def srun(
        self,
        program: list[str],
        *options: str,
        seconds: int,
        nodes: int = NODES,
        per_node: int = 2,
        cliques: int = 1,
        **variables: str,
    ) -> launch.Ended:
        """Run a Python command line on `nodes` x `per_node` ranks, for at most `seconds`."""
        name = f"cascade-test-{os.getpid()}-{time.monotonic_ns()}"
        command = step(program, f"--job-name={name}", *options, nodes=nodes, per_node=per_node)
        ended = launch.ended(command, seconds=seconds, cliques=cliques, **(RELIABLE | variables))
        self.cancel(name)
        return ended

    def sbatch(self, script: str, *options: str, output: Path, seconds: int, **variables: str) -> launch.Ended:
        """Submit a script and wait for its end, for at most `seconds` in the queue and running; its own output."""
        return self.wait(self.submit(script, *options, output=output, **variables), output=output, seconds=seconds)

    def submit(self, script: str, *options: str, output: Path, **variables: str) -> str:
        """Submit a script; its job."""
        command = ["sbatch", "--parsable", f"--output={output}", *options, script]
        submitted = launch.ended(command, seconds=ASK_LIMIT_S, **variables)
        assert submitted.status == 0, submitted
        return submitted.output.strip()

    def wait(self, job: str, *, output: Path, seconds: int) -> launch.Ended:
        """Wait for the end of a batch job, for at most `seconds`; one that was queued again begins at once."""
        deadline = time.monotonic() + seconds
        while not (state := _state(job)).ended and time.monotonic() < deadline:  # sbatch --wait looks after 2, 10, 42 s
            if state.name == "PENDING" and state.reason == "BeginTime":  # else it would wait two minutes
                ask("scontrol", "update", f"JobId={job}", "StartTime=now")
            time.sleep(0.2)
        status = state.status if state.ended else 124
        if not state.ended:
            ask("scancel", job)
        return launch.Ended(status, output.read_text() if output.exists() else "", f"job {job}: {state.name}")

    def jobs(self, name: str = "") -> list[str]:
        """The ids of the jobs with this name, else of all, that wait, run or end."""
        return ask("squeue", "--noheader", "--format=%i", *([f"--name={name}"] if name else [])).split()

    def cancel(self, name: str = "") -> None:
        """End the jobs with this name, else all, and wait for that: an srun that was killed leaves its job behind."""
        deadline = time.monotonic() + ASK_LIMIT_S
        while (left := self.jobs(name)) and time.monotonic() < deadline:
            ask("scancel", *left)
            time.sleep(0.1)

    def stop(self) -> list[str]:
        """End the Slurm that this session started; what is still running afterwards."""
        if not self.started:
            return []
        self.started = False
        self.cancel()
        deadline = time.monotonic() + ASK_LIMIT_S
        while any(name.startswith("slurmstepd") for name in daemons()) and time.monotonic() < deadline:
            time.sleep(0.1)  # without the daemons a step that ends would wait for them for ever
        _manage("down", seconds=ASK_LIMIT_S)
        left = daemons()
        if CPU_GROUP.exists() and not left:
            CPU_GROUP.rmdir()
        return left


def step(program: list[str], *options: str, nodes: int = NODES, per_node: int = 2) -> list[str]:
    """The command line of a job of Python ranks that ends when one of them dies."""
    shape = [f"--nodes={nodes}", f"--ntasks-per-node={per_node}", "--mpi=pmi2", "--kill-on-bad-exit=1"]
    return ["srun", *shape, *options, sys.executable, *program]


@contextmanager
def cluster() -> Iterator[Cluster]:
    """The Slurm to use; skips the test where there is none and none can be started."""
    name = cluster_name()
    if "SLURM_JOB_ID" in os.environ:
        pytest.skip("this is a Slurm job already, and what the tests start would wait for its nodes")
    if name is not None and name != OURS and os.environ.get(SITE) != "site":
        pytest.skip(f"the Slurm here, {name}, is a site's: set {SITE}=site to run jobs on it")
    found = Cluster(started=name is None and _start())
    try:
        yield found
    finally:
        left = found.stop()
        assert not left, f"the Slurm of the tests did not end: {left}"


def cluster_name() -> str | None:
    """The name of the Slurm that answers, None if none does."""
    if shutil.which("sinfo") is None:
        return None
    if _configured_for_tests() and not any(name.startswith("slurmctld") for name in daemons()):
        return None  # sinfo would wait 10 s for it
    if not ask("sinfo", "--noheader"):
        return None
    lines = (line.partition("=") for line in ask("scontrol", "show", "config").splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == "ClusterName"), None)


def ask(*command: str) -> str:
    """What a command of Slurm prints, "" if it fails or does not answer."""
    done = subprocess.run(
        launch.limited(list(command), ASK_LIMIT_S),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ASK_LIMIT_S + 15,
        check=False,
    )
    return done.stdout if done.returncode == 0 else ""


def daemons() -> list[str]:
    """Slurm's processes on this host, without those that have ended and wait for their parent to notice."""
    running = psutil.process_iter(["name", "status", "pid"])
    found = [each.info for each in running if each.info["status"] != psutil.STATUS_ZOMBIE]
    return [f"{each['name']} {each['pid']}" for each in found if each["name"] in DAEMONS]


def _start() -> bool:
    """Bring a Slurm up; True when it answers."""
    if not MANAGER.is_file():
        _do_without("no Slurm answers, and ../shared/tools/slurm_up.sh is not there to start one")
    if os.geteuid() != 0:
        _do_without("no Slurm answers, and only root can start one")
    if CONFIGURED.exists() and not _configured_for_tests():
        _do_without(f"{CONFIGURED} configures another Slurm, which does not answer")
    if AUTOGROUP.exists() and AUTOGROUP.read_text().strip() == "1" and os.access(CPU_GROUP.parent, os.W_OK):
        CPU_GROUP.mkdir(exist_ok=True)
    started = _manage(str(NODES), str(CPUS), seconds=START_LIMIT_S)
    if started.status != 0 and cluster_name() == OURS:  # it waits for idle nodes: the last session may have died
        Cluster(started=True).cancel()
        return True
    assert started.status == 0, started
    return True


def _do_without(reason: str) -> NoReturn:
    """Where the tests under Slurm are asked for, a machine that cannot run them is a failure."""
    if os.environ.get(SITE) == "required":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _configured_for_tests() -> bool:
    return CONFIGURED.exists() and f"ClusterName={OURS}\n" in CONFIGURED.read_text()


class _State(NamedTuple):
    """Where a batch job is."""

    name: str
    ended: bool
    status: int  # as a shell would say it
    reason: str  # why it waits


def _state(job: str) -> _State:
    shown = ask("scontrol", "--oneliner", "show", "job", job)
    fields = dict(field.split("=", 1) for field in shown.split() if "=" in field)
    status, _, killed_by = fields.get("ExitCode", "0:0").partition(":")
    name = fields.get("JobState", "not known")
    return _State(
        name,
        name in ENDED,
        int(status) or (128 + int(killed_by) if int(killed_by) else int(name != "COMPLETED")),
        fields.get("Reason", ""),
    )


def _manage(*arguments: str, seconds: int) -> launch.Ended:
    """Run the script that starts and ends the Slurm on this host."""
    command = 'if [ -d "$0" ]; then echo $$ > "$0/cgroup.procs"; fi; exec bash "$@"'
    return launch.ended(["bash", "-c", command, str(CPU_GROUP), str(MANAGER), *arguments], seconds=seconds)
