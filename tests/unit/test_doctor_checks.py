"""The doctor's checks that need no MPI: each of them ok, and with every trouble that it knows."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import fake_host
import pytest
from fake_host import GIB, only, space, statuses

from cascade_mpi.doctor import configured, cpus, disk, examine, gpu, library, limits, node, slurm, software
from cascade_mpi.doctor.finding import Report
from cascade_mpi.doctor.host import Ran

MIB = 1 << 20
NEEDED = {"numpy": "2.4.6", "numba": "0.68.1", "mpi4py": "4.1.2"}

# ------------------------------------------------------------------------------------------ software


def test_versions(tmp_path: Path) -> None:
    found = only(software.versions(fake_host.host(tmp_path, packages=NEEDED | {"cupy-cuda12x": "13.1"})))
    assert found.status == "ok"
    assert "mpi4py 4.1.2, cupy 13.1" in found.found
    found = only(software.versions(fake_host.host(tmp_path, packages={"numpy": "2.0"})))
    assert found.status == "problem"
    assert "missing: numba mpi4py" in found.found
    assert found.remedy == "/env/bin/python -m pip install numba mpi4py"


def test_kernel_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, home = tmp_path / "new/cache", tmp_path / "home"
    home.mkdir()
    environ = {"NUMBA_CACHE_DIR": str(asked), "HOME": str(home)}
    found = only(software.kernel_cache(fake_host.host(tmp_path, environ=environ, statvfs=space(GIB))))
    assert (found.status, found.found) == ("ok", f"{asked} can be written")
    found = only(software.kernel_cache(fake_host.host(tmp_path, environ=environ, statvfs=space(MIB))))
    assert (found.status, found.found) == ("warning", f"{asked}: 1.0 MiB free")
    writable: list[str] = [str(home)]
    monkeypatch.setattr(software, "_writable", lambda path: str(path).startswith(tuple(writable)))
    found = only(software.kernel_cache(fake_host.host(tmp_path, environ=environ)))
    assert found.status == "warning"
    assert f"{home}/.cache/numba is used" in found.found
    found = only(software.kernel_cache(fake_host.host(tmp_path, environ={"HOME": str(home)})))
    assert found.status == "ok"  # a read-only installation is usual
    writable[:] = ["/nowhere"]
    found = only(software.kernel_cache(fake_host.host(tmp_path, environ=environ)))
    assert found.status == "warning"
    assert "NUMBA_CACHE_DIR" in found.remedy


def hdf5(tmp_path: Path, ran: Ran | None, version: str | None = "3.11.0") -> Any:
    packages = {"h5py": version} if version else {}
    programs = {} if ran is None else {"/env/bin/python -c": ran}
    return only(software.hdf5(fake_host.host(tmp_path, packages=packages, programs=programs)))


def test_hdf5(tmp_path: Path) -> None:
    assert hdf5(tmp_path, None, None).status == "ok"
    found = hdf5(tmp_path, Ran(0, '["1.14.2", true, ["/opt/libmpi.so.12"]]\n', ""))
    assert (found.status, found.found) == ("ok", "h5py 3.11.0, HDF5 1.14.2, parallel, with /opt/libmpi.so.12")
    found = hdf5(tmp_path, Ran(0, '["1.14.2", false, []]\n', ""))
    assert found.status == "warning"
    assert "serial" in found.found
    found = hdf5(tmp_path, Ran(0, '["1.14.2", true, ["/a/libmpi.so.12", "/b/libmpi.so.40"]]\n', ""))
    assert found.status == "problem"
    assert "/a/libmpi.so.12, /b/libmpi.so.40" in found.found
    found = hdf5(tmp_path, Ran(1, "", "Traceback\nImportError: libmpi.so.12: cannot open\n"))
    assert found.status == "problem"
    assert "ImportError: libmpi.so.12: cannot open" in found.found
    assert hdf5(tmp_path, None).status == "problem"


# ------------------------------------------------------------------------------------------ memory and limits


@pytest.mark.parametrize(
    ("free", "ranks", "status"),
    [(GIB, 1, "ok"), (GIB, 4, "ok"), (GIB, 5, "warning"), (64 * MIB, 2, "warning"), (64 * MIB, 3, "problem")],
)
def test_shared_memory(tmp_path: Path, free: int, ranks: int, status: str) -> None:
    found = only(limits.shared_memory(fake_host.host(tmp_path, ranks=ranks, statvfs=space(free))))
    assert (found.name, found.status) == ("/dev/shm", status)
    assert "free of 1000.0 GiB" in found.found


@pytest.mark.parametrize(
    ("given", "ranks", "status", "says"),
    [
        ("4GiB", 1, "problem", "too little for the arena of dram_bytes = 4GiB (CASCADE_DRAM_BYTES) of 1 rank"),
        ("512MiB", 2, "ok", ""),
        ("513MiB", 2, "problem", "of 2 ranks"),
        ("1MiB", 64, "ok", ""),
        ("many", 5, "warning", "default arena (256.0 MiB) of 5 ranks"),
    ],
)
def test_memory_for_the_arenas_that_somebody_asked_for(
    tmp_path: Path, given: str, ranks: int, status: str, says: str
) -> None:
    environ = {"CASCADE_DRAM_BYTES": given}
    for free, check in ((GIB, limits.shared_memory), (1000 * GIB, limits.memory_limits)):
        memory = {"SLURM_MEM_PER_NODE": "1024"} | environ
        found = only(check(fake_host.host(tmp_path, ranks=ranks, statvfs=space(free), environ=memory)))
        assert found.status == status
        assert says in found.found


@pytest.mark.parametrize(
    ("environ", "status", "says"),
    [
        ({}, "ok", "all defaults"),
        ({"CASCADE_DRAM_BYTES": "4GiB"}, "ok", "dram_bytes 4GiB (CASCADE_DRAM_BYTES)"),
        ({"CASCADE_DRAM": "4GiB"}, "problem", "unknown variable CASCADE_DRAM: did you mean"),
        ({"CASCADE_CONFIG": "/gone/c.toml"}, "problem", "CASCADE_CONFIG /gone/c.toml: no such file"),
    ],
)
def test_settings(tmp_path: Path, environ: dict[str, str], status: str, says: str) -> None:
    found = only(configured.settings(fake_host.host(tmp_path, environ=environ)))
    assert (found.name, found.status) == ("settings", status)
    assert says in found.found


def test_settings_are_among_the_checks(tmp_path: Path) -> None:
    report = examine.look(fake_host.host(tmp_path, environ={"CASCADE_DRAM": "4GiB"}))
    assert [finding.status for finding in report.findings if finding.name == "settings"] == ["problem"]


def test_no_shared_memory(tmp_path: Path) -> None:
    assert only(limits.shared_memory(fake_host.host(tmp_path))).status == "problem"


@pytest.mark.parametrize(("mib", "status"), [(4096, "ok"), (400, "warning"), (50, "problem")])
def test_memory_limits(tmp_path: Path, mib: int, status: str) -> None:
    files = {"proc/meminfo": "MemAvailable: 9000000 kB"}
    host = fake_host.host(tmp_path, files, ranks=2, environ={"SLURM_MEM_PER_NODE": str(mib)})
    found = only(limits.memory_limits(host))
    assert found.status == status
    assert found.found.startswith("SLURM_MEM_PER_NODE: ")
    assert "MemAvailable 8.6 GiB" in found.found


def test_memory_limits_unknown(tmp_path: Path) -> None:
    assert only(limits.memory_limits(fake_host.host(tmp_path))).status == "warning"


def test_locked_memory(tmp_path: Path) -> None:
    assert only(limits.locked_memory(fake_host.host(tmp_path))).found == "unlimited (hard limit unlimited)"
    small = (8 * MIB, 8 * MIB)
    assert only(limits.locked_memory(fake_host.host(tmp_path, limit=small))).status == "ok"
    network = {"sys/class/infiniband/mlx5_0/x": ""}
    found = only(limits.locked_memory(fake_host.host(tmp_path, network, limit=small)))
    assert found.status == "warning"
    assert "8.0 MiB (hard limit 8.0 MiB), with mlx5_0" in found.found
    assert "administrators" in found.remedy
    found = only(limits.locked_memory(fake_host.host(tmp_path, network, limit=(8 * MIB, fake_host.UNLIMITED))))
    assert found.remedy.startswith("ulimit -l unlimited")
    assert only(limits.locked_memory(fake_host.host(tmp_path, network))).status == "ok"


def test_files_and_processes(tmp_path: Path) -> None:
    def check(limit: tuple[int, int], ranks: int = 1) -> Any:
        return only(limits.files_and_processes(fake_host.host(tmp_path, limit=limit, ranks=ranks)))

    assert check((1024, 4096)).status == "ok"
    assert check((1023, 4096)).remedy == "ulimit -n 1024 in the job script"
    assert check((1023, 1023)).remedy == "ask the administrators for 1024 files"
    assert check((4096, 10000), ranks=128).status == "warning"
    assert check((8192, 10000), ranks=600).status == "warning"
    few = {limits.resource.RLIMIT_NOFILE: (4096, 4096), limits.resource.RLIMIT_NPROC: (271, 271)}
    host = fake_host.host(tmp_path)
    object.__setattr__(host, "limit", few.__getitem__)
    assert "few for 1 rank and" in only(limits.files_and_processes(host)).found


def test_leftovers(tmp_path: Path) -> None:
    host = fake_host.host(tmp_path, {"proc/100/maps": "", "proc/100/fd/x": ""})
    (tmp_path / "proc/self").symlink_to("100")
    (tmp_path / "proc/100/ns").mkdir()
    (tmp_path / "proc/100/ns/pid").symlink_to("pid:[4026531836]")
    assert only(limits.leftovers(host)).found == "none"
    shm = tmp_path / "dev/shm"
    shm.mkdir(parents=True)
    for name in ("mpich_shm_1_0", "mpich_shm_2_0", "mpich_shm_3_0"):
        (shm / name).write_bytes(b"x" * 4096)
    assert only(limits.leftovers(host)).status == "ok"  # they are new
    for name in ("mpich_shm_1_0", "mpich_shm_2_0"):
        os.utime(shm / name, (0, 0))
    found = only(limits.leftovers(host))
    assert (found.status, found.remedy) == ("warning", "cascade cleanup")
    assert found.found.startswith("2 files, 8.0 KiB, of dead jobs of")
    assert "1 file of MPI in use or new" in found.found
    (tmp_path / "proc/100/ns/pid").unlink()
    found = only(limits.leftovers(host))
    assert found.status == "ok"
    assert "2 files, 8.0 KiB, that may be in use: the PID namespace" in found.found


# ------------------------------------------------------------------------------------------ CPUs

NUMA = {
    "sys/devices/system/cpu/online": "0-7",
    "sys/devices/system/node/node0/cpulist": "0-3",
    "sys/devices/system/node/node1/cpulist": "4-7",
    "sys/devices/system/node/possible": "0-1",
}


def test_cpus(tmp_path: Path) -> None:
    found = only(cpus.cpus(fake_host.host(tmp_path, NUMA, ranks=2)))
    assert (found.status, found.found) == ("ok", "4 of 8 CPUs, NUMA node 0 of 2")
    found = only(cpus.cpus(fake_host.host(tmp_path, NUMA, ranks=2, cpus=range(8))))
    assert found.status == "warning"
    assert "NUMA nodes 0,1 of 2" in found.found
    assert only(cpus.cpus(fake_host.host(tmp_path, NUMA, cpus=range(8)))).status == "ok"  # one rank may have all


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "max 100000"}, None),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/job",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
            },
            2.0,
        ),
        ({"proc/self/cgroup": "3:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}, None),
    ],
)
def test_cpu_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    host = fake_host.host(tmp_path, files)
    assert cpus.cpu_quota(host) == quota
    assert only(cpus.cpus(host)).status == ("ok" if quota is None else "warning")


def ranks(*sets: range | list[int], threads: int = 0, devices: list[str] | None = None) -> list[Report]:
    return [
        Report(rank, "n1", rank, list(cpus), threads, devices[rank] if devices else "")
        for rank, cpus in enumerate(sets)
    ]


def test_sharing() -> None:
    assert only(cpus.sharing(ranks(range(4)))).status == "ok"
    found = only(cpus.sharing(ranks(range(4), range(4, 8))))
    assert (found.status, found.found) == ("ok", "2 ranks on 8 CPUs, each on its own")
    assert only(cpus.sharing(ranks([0], [1]))).status == "ok"  # a CPU each is enough
    found = only(cpus.sharing(ranks(range(4), range(4))))
    assert (found.status, found.found) == ("warning", "2 ranks may all run on the same 4 CPUs")
    found = only(cpus.sharing(ranks(range(4), range(3, 7))))
    assert (found.status, found.found) == ("warning", "2 ranks are bound, but share some of the 7 CPUs")
    found = only(cpus.sharing(ranks([0], [0])))
    assert (found.status, found.found[:15]) == ("warning", "2 ranks on 1 CP")


def test_threads(tmp_path: Path) -> None:
    def asked(**environ: str) -> int:
        return cpus.threads_per_rank(fake_host.host(tmp_path, environ=environ))

    assert [asked(), asked(OMP_NUM_THREADS="4,2"), asked(MKL_NUM_THREADS="3"), asked(OMP_NUM_THREADS="x")] == [
        0, 4, 3, 0,
    ]  # fmt: skip
    assert only(cpus.threads(ranks(range(4)))).status == "ok"
    assert only(cpus.threads(ranks(range(4), range(4, 8)))).status == "ok"  # bound: each as many as it has
    found = only(cpus.threads(ranks(range(4), range(4))))
    assert found.status == "warning"
    assert "export OMP_NUM_THREADS=2" in found.remedy
    assert only(cpus.threads(ranks(range(4), range(4), threads=2))).status == "ok"
    assert only(cpus.threads(ranks(range(4), range(4), threads=3))).status == "warning"
    assert only(cpus.threads(ranks([0], [0], threads=1))).status == "ok"  # that is the other check's business


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 3, 8, 10, 11], "0-3,8,10-11")])
def test_lists_of_numbers(numbers: list[int], text: str) -> None:
    assert cpus.format_list(numbers) == text
    assert cpus.parse_list(text) == set(numbers)


# ------------------------------------------------------------------------------------------ GPU

SMI = "nvidia-smi --query-gpu"
TWO = Ran(0, "GPU-aa, NVIDIA A100, 40960 MiB, 550.54\nGPU-bb, NVIDIA A100, 40960 MiB, 550.54\n", "")
CUPY = {"cupy-cuda12x": "13.1"}


def test_no_gpu(tmp_path: Path) -> None:
    assert only(gpu.gpu(fake_host.host(tmp_path))).found == "none"
    assert "AMD" in only(gpu.gpu(fake_host.host(tmp_path, {"dev/kfd": ""}))).found
    assert gpu.device(fake_host.host(tmp_path)) == ""


@pytest.mark.parametrize("ran", [None, Ran(9, "NVIDIA-SMI has failed", ""), Ran(124, "", "no answer within 20 s")])
def test_a_gpu_whose_driver_is_silent(tmp_path: Path, ran: Ran | None) -> None:
    programs = {} if ran is None else {SMI: ran}
    found = only(gpu.gpu(fake_host.host(tmp_path, {"dev/nvidia0": "", "dev/nvidiactl": ""}, programs=programs)))
    assert found.status == "problem"
    assert "/dev has nvidia0, but" in found.found


def test_gpu_and_cupy(tmp_path: Path) -> None:
    works = {SMI: TWO, "/env/bin/python -c": Ran(0, "cupy 13.1 2 12040\n", "")}
    found = list(gpu.gpu(fake_host.host(tmp_path, programs=works, packages=CUPY)))
    assert statuses(found) == {"GPU": "ok", "CuPy": "ok"}
    assert found[0].found == "2 x NVIDIA A100, 40960 MiB, driver 550.54"
    assert found[1].found == "cupy-cuda12x 13.1, CUDA 12.4, 2 devices"
    assert statuses(gpu.gpu(fake_host.host(tmp_path, programs=works))) == {"GPU": "ok", "CuPy": "warning"}
    broken = {SMI: TWO, "/env/bin/python -c": Ran(1, "", "Traceback\ncudaErrorInsufficientDriver: too old\n")}
    found = list(gpu.gpu(fake_host.host(tmp_path, programs=broken, packages=CUPY)))
    assert statuses(found) == {"GPU": "ok", "CuPy": "problem"}
    assert "cudaErrorInsufficientDriver: too old" in found[1].found


@pytest.mark.parametrize(
    ("local", "visible", "uuid"),
    [
        (None, None, "GPU-aa"), ("1", None, "GPU-bb"), ("2", None, "GPU-aa"), ("0", "1", "GPU-bb"),
        ("1", "1,0", "GPU-aa"), ("0", "GPU-b", "GPU-bb"), ("0", "", "hidden"), ("1", "1,7,0", "GPU-bb"),
    ],
)  # fmt: skip
def test_device_by_local_rank(tmp_path: Path, local: str | None, visible: str | None, uuid: str) -> None:
    environ = {"SLURM_LOCALID": local, "CUDA_VISIBLE_DEVICES": visible}
    given = {name: value for name, value in environ.items() if value is not None}
    assert gpu.device(fake_host.host(tmp_path, programs={SMI: TWO}, environ=given)) == uuid


def test_devices_of_a_node() -> None:
    assert not list(gpu.devices(ranks([0], [1])))
    found = only(gpu.devices(ranks([0], [1], devices=["GPU-aa", "GPU-bb"])))
    assert (found.status, found.found) == ("ok", "local rank 0: GPU-aa; local rank 1: GPU-bb")
    assert "2 ranks share" in only(gpu.devices(ranks([0], [1], devices=["GPU-aa", "GPU-aa"]))).found
    found = only(gpu.devices(ranks([0], [1], devices=["GPU-aa", "hidden"])))
    assert (found.status, found.found[:30]) == ("warning", "1 of 2 ranks see no device (CU")


# ------------------------------------------------------------------------------------------ disk

MOUNTS = """22 1 0:5 / / rw - ext4 /dev/vda rw
23 22 0:6 / {root}/scratch rw,relatime shared:1 - {kind} server:/scratch rw
24 22 0:7 / {root}/scra rw - tmpfs tmpfs rw
not a line
"""


def scratch(tmp_path: Path, kind: str = "lustre", **more: Any) -> Any:
    folder = tmp_path / "scratch"
    folder.mkdir(exist_ok=True)
    files = {"proc/self/mountinfo": MOUNTS.format(root=tmp_path, kind=kind)}
    return fake_host.host(tmp_path, files, **({"disk": folder, "statvfs": space(500 * GIB)} | more))


def test_no_disk_asked_for(tmp_path: Path) -> None:
    assert not list(disk.disk(fake_host.host(tmp_path)))


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("lustre", "ok"), ("gpfs", "ok"), ("ext4", "ok"), ("xfs", "ok"), ("nfs4", "warning"), ("tmpfs", "warning"),
        ("overlay", "warning"), ("fuse.sshfs", "warning"),
    ],
)  # fmt: skip
def test_kinds_of_file_systems(tmp_path: Path, kind: str, status: str) -> None:
    found = {finding.name: finding for finding in disk.disk(scratch(tmp_path, kind))}
    assert found["file system"].status == status
    assert f"{kind}, mounted at {tmp_path}/scratch" in found["file system"].found
    assert found["disk access"].status == "ok"
    assert ("Lustre striping" in found) is (kind == "lustre")
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("free", "inodes", "status"), [(500 * GIB, 10**6, "ok"), (40 * GIB, 10**6, "warning"), (500 * GIB, 9, "warning")]
)
def test_room(tmp_path: Path, free: int, inodes: int, status: str) -> None:
    host = scratch(tmp_path, statvfs=space(free, inodes=inodes))
    assert statuses(disk.disk(host))["disk space"] == status


def test_no_room(tmp_path: Path) -> None:
    assert statuses(disk.disk(scratch(tmp_path, statvfs=space(GIB - 4096))))["disk space"] == "problem"

    def gone(path: Path) -> Any:
        raise OSError(116, "Stale file handle")

    assert statuses(disk.disk(scratch(tmp_path, statvfs=gone)))["disk space"] == "problem"


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    found = only(disk.disk(fake_host.host(tmp_path, disk=tmp_path / "missing")))
    assert (found.status, "does not exist" in found.found) == ("problem", True)
    found = only(disk.disk(fake_host.host(tmp_path, {"file": ""}, disk=tmp_path / "file")))
    assert (found.status, "is not a directory" in found.found) == ("problem", True)


@pytest.mark.parametrize(
    ("refused", "status", "text"),
    [
        (os.O_CREAT, "problem", "cannot be written: Read-only file system"),
        (os.O_DIRECT, "ok", "O_DIRECT is not possible (Read-only file system)"),
    ],
)
def test_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int, status: str, text: str) -> None:
    real = os.open

    def open_(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & refused:
            raise OSError(30, "Read-only file system")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(disk.os, "open", open_)
    found = {finding.name: finding for finding in disk.disk(scratch(tmp_path))}["disk access"]
    assert found.status == status
    assert text in found.found


def test_a_quota_that_is_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(handle: int, data: Any) -> int:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(disk.os, "write", write)
    host = scratch(tmp_path)
    assert statuses(disk.disk(host))["disk access"] == "problem"
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("ran", "status"),
    [
        (Ran(0, "stripe_count:  8 stripe_size:   4194304 \n", ""), "ok"),
        (Ran(0, "stripe_count:  1 stripe_size:   1048576 \n", ""), "warning"),
        (Ran(2, "", "lfs getstripe: cannot open"), "warning"),
        (None, "warning"),
    ],
)
def test_striping(tmp_path: Path, ran: Ran | None, status: str) -> None:
    host = scratch(tmp_path, programs={} if ran is None else {"lfs getstripe -d": ran})
    assert statuses(disk.disk(host))["Lustre striping"] == status


# ------------------------------------------------------------------------------------------ Slurm, name, clock

VERSION = {"srun --version": Ran(0, "slurm-wlm 22.05.8\n", "")}
STEP = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_NODEID": "1", "SLURM_MPI_TYPE": "pmi2", "SLURM_PROCID": "2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "status", "text"),
    [
        ({}, "ok", "22.05.8; not in a job"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, "ok", "job 7, 4 tasks asked for, this process is none of them"),
        (STEP, "ok", "job 7 step 0, 4 tasks by srun on 2 nodes, --mpi=pmi2, CPU binding none"),
        (STEP | {"SLURM_CPU_BIND": "quiet,mask_cpu:0x1"}, "ok", "CPU binding quiet,mask_cpu:0x1"),
        (STEP | {"SLURM_CPU_BIND": "quiet,none"}, "warning", "CPU binding quiet,none"),
        (STEP | {"SLURM_MPI_TYPE": ""}, "warning", "--mpi=none"),
        (STEP | {"PMI_SIZE": "2", "MPI_LOCALNRANKS": "2", "SLURM_JOB_NUM_NODES": "1"}, "ok", "2 tasks by mpiexec on 1"),
    ],
)
def test_slurm(tmp_path: Path, environ: dict[str, str], status: str, text: str) -> None:
    found = only(slurm.slurm(fake_host.host(tmp_path, programs=VERSION, environ=environ)))
    assert found.status == status
    assert text in found.found


def test_without_slurm(tmp_path: Path) -> None:
    assert only(slurm.slurm(fake_host.host(tmp_path))).found == "none here; started by no launcher"
    found = only(slurm.slurm(fake_host.host(tmp_path, environ={"SLURM_JOB_ID": "7"})))
    assert "version unknown" in found.found


def test_what_this_slurm_offers_is_said(tmp_path: Path) -> None:
    programs = VERSION | {"srun --mpi=list": Ran(0, "", "MPI plugin types are...\n\tpmi2\n\tnone\n")}
    found = only(slurm.slurm(fake_host.host(tmp_path, programs=programs, environ=STEP | {"SLURM_MPI_TYPE": ""})))
    assert found.remedy.endswith("MPI plugin types are... pmi2 none")


def test_host_name(tmp_path: Path) -> None:
    def resolves(*addresses: str, **environ: str) -> str:
        return only(
            node.host_name(fake_host.host(tmp_path, resolve=lambda name: list(addresses), environ=environ))
        ).status

    assert resolves("10.0.0.1") == "ok"
    assert resolves("127.0.1.1") == "ok"
    assert resolves("127.0.1.1", SLURM_JOB_NUM_NODES="2") == "warning"
    assert resolves("127.0.1.1", "10.0.0.1", SLURM_JOB_NUM_NODES="2") == "ok"
    assert resolves("127.0.1.1", SLURM_JOB_NUM_NODES="2", **STEP) == "ok"  # srun hands addresses over

    def unknown(name: str) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    found = only(node.host_name(fake_host.host(tmp_path, resolve=unknown)))
    assert found.status == "warning"
    assert "n1 has no address: Name or service not known" in found.found


@pytest.mark.parametrize(("source", "status"), [("tsc", "ok"), ("", "ok"), ("hpet", "warning")])
def test_clock(tmp_path: Path, source: str, status: str) -> None:
    files = {"sys/devices/system/clocksource/clocksource0/current_clocksource": source}
    assert only(node.clock(fake_host.host(tmp_path, files))).status == status


def test_harmful_variables(tmp_path: Path) -> None:
    assert not list(library.mpi_variables(fake_host.host(tmp_path, environ={"MPIR_CVAR_ASYNC_PROGRESS": "0"})))
    host = fake_host.host(tmp_path, environ={"MPIR_CVAR_ASYNC_PROGRESS": "1"})
    assert only(library.mpi_variables(host)).status == "warning"
