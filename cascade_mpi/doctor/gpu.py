"""Checks of the GPU: driver, CuPy, and which device the ranks of a node would use.

Does not cover whether MPI takes GPU memory (see `library`, it needs MPI). Asks nvidia-smi and a Python of its own:
this process touches no device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cascade_mpi.doctor.finding import Finding, Report, ok, problem, warning
from cascade_mpi.doctor.host import Host
from cascade_mpi.doctor.software import CUPY_PACKAGES
from cascade_mpi.launcher import local_rank

_QUERY = ["nvidia-smi", "--query-gpu=uuid,name,memory.total,driver_version", "--format=csv,noheader"]
_CUPY_PROGRAM = """
import cupy
count = cupy.cuda.runtime.getDeviceCount()
memory = cupy.cuda.alloc(1 << 20)
print("cupy", cupy.__version__, count, cupy.cuda.runtime.runtimeGetVersion())
"""
_ONE_EACH = "give each rank its own: srun --gpus-per-task=1, or all to all with --gpu-bind=none and one rank a device"


def gpus(host: Host) -> list[tuple[str, str]] | None:
    """Local. UUID and description of each NVIDIA device of the node, None without a driver that answers."""
    ran = host.run(_QUERY)
    if ran is None or ran.status != 0:
        return None
    rows = [[word.strip() for word in line.split(",")] for line in ran.output.splitlines() if line.startswith("GPU-")]
    return [(row[0], f"{row[1]}, {row[2]}, driver {row[3]}") for row in rows if len(row) == 4]


def gpu(host: Host) -> Iterator[Finding]:
    """Local. Devices and driver, and CuPy where there are devices."""
    found, hardware = gpus(host), [name for name in host.names("dev") if name[:6] == "nvidia" and name[6:].isdigit()]
    if not found:
        if hardware:
            ran = host.run(_QUERY)
            says = (
                "nvidia-smi is not there" if ran is None else f"nvidia-smi: {(ran.output + ran.errors).strip()[:200]}"
            )
            yield problem(
                "GPU", f"/dev has {', '.join(hardware)}, but the driver does not answer ({says})",
                "reload the driver, or in a container start with --gpus all (docker) or --nv (apptainer)",
            )  # fmt: skip
        elif "kfd" in host.names("dev"):
            yield ok("GPU", "an AMD device (/dev/kfd); Cascade has no tier on it")
        else:
            yield ok("GPU", "none")
        return
    kinds = sorted({description for _, description in found})
    line = f"{len(found)} x {kinds[0]}" if len(kinds) == 1 else f"{len(found)}: {'; '.join(kinds)}"
    yield ok("GPU", line)
    yield from _cupy(host)


def _cupy(host: Host) -> Iterator[Finding]:
    package = next((name for name in CUPY_PACKAGES if host.version(name)), None)
    if package is None:
        yield warning("CuPy", "not installed: the GPU tier needs it", "pip install 'cascade-mpi[gpu]'")
        return
    ran = host.run([host.python, "-c", _CUPY_PROGRAM])
    if ran is not None and ran.status == 0 and ran.output.startswith("cupy "):
        _, version, count, runtime = ran.output.split()[:4]
        cuda = f"CUDA {int(runtime) // 1000}.{int(runtime) % 1000 // 10}"
        yield ok("CuPy", f"{package} {version}, {cuda}, {count} device{'' if count == '1' else 's'}")
        return
    last = "no Python" if ran is None else ((ran.errors or ran.output).strip().splitlines() or ["no output"])[-1]
    yield problem(
        "CuPy", f"{package} {host.version(package)} does not work: {last[:200]}",
        "install the CuPy that fits the driver (cupy-cuda12x for CUDA 12), and see that this rank was given a device",
    )  # fmt: skip


def device(host: Host) -> str:
    """Local. The UUID of the device that this rank would use: of those it sees, by its rank on the node."""
    found = gpus(host)
    if not found:
        return ""
    visible = host.environ.get("CUDA_VISIBLE_DEVICES")
    seen = [uuid for uuid, _ in found]
    if visible is not None:
        chosen = []
        for word in visible.split(","):
            match = [uuid for uuid in seen if word.strip() and uuid.startswith(word.strip())]
            if word.strip().isdigit() and int(word) < len(seen):
                match = [seen[int(word)]]
            if not match:
                break  # CUDA, too, ignores everything after the first that is wrong
            chosen.append(match[0])
        seen = chosen
    return seen[(local_rank(host.environ) or 0) % len(seen)] if seen else "hidden"


def devices(node: Sequence[Report]) -> Iterator[Finding]:
    """Local. Of all ranks of one node: does each have a device, and how many share one."""
    used = [report.device for report in node]
    if not any(used):
        return
    hidden = used.count("hidden") + used.count("")
    counts = {each: used.count(each) for each in used if each not in ("", "hidden")}
    pairs = "; ".join(
        f"local rank {index if report.local_rank is None else report.local_rank}: {report.device}"
        for index, report in enumerate(node)
    )
    if hidden:
        yield warning(
            "GPU per rank", f"{hidden} of {len(node)} ranks see no device (CUDA_VISIBLE_DEVICES): {pairs}", _ONE_EACH
        )
    elif max(counts.values()) > 1:
        yield warning("GPU per rank", f"{max(counts.values())} ranks share a device: {pairs}", _ONE_EACH)
    else:
        yield ok("GPU per rank", pairs)
