"""Memory limits: each source, what is ignored, the error, and the arena that fits."""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_mpi.config import parse_size
from cascade_mpi.errors import CascadeError, MemoryLimitError
from cascade_mpi.memory import Limit, auto_dram, check, limits

GIB, MIB = 1 << 30, 1 << 20


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
    return root


def found(root: Path, environ: dict[str, str] | None = None, statvfs: Any = None) -> dict[str, int]:
    """Name and free bytes of each limit; no name twice."""

    def absent(path: Path) -> os.statvfs_result:
        raise FileNotFoundError(path)

    result = limits(root, environ or {}, statvfs or absent)
    assert len({limit.name for limit in result}) == len(result)
    return {limit.name: limit.bytes_free for limit in result}


def test_a_bare_root_has_no_limits(tmp_path: Path) -> None:
    assert found(tmp_path) == {}


def test_this_machine_can_be_asked() -> None:
    result = limits()
    assert all(limit.name and limit.bytes_free >= 0 and limit.detail for limit in result)
    assert "MemAvailable" in {limit.name for limit in result} or not Path("/proc/meminfo").exists()


def test_shared_memory(tmp_path: Path) -> None:
    asked = []

    def statvfs(path: Path) -> Any:
        asked.append(path)
        return types.SimpleNamespace(f_bavail=3 * 256, f_bfree=5 * 256, f_blocks=8 * 256, f_frsize=4096, f_bsize=1)

    (limit,) = limits(tmp_path, {}, statvfs)
    assert limit == Limit("/dev/shm", 3 * MIB, "of 8.0 MiB")
    assert asked == [tmp_path / "dev/shm"]


def test_shared_memory_is_that_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "dev/shm").mkdir(parents=True)
    assert [limit.name for limit in limits(tmp_path, {})] == ["/dev/shm"]


def group_v2(limit: object, usage: object = 0, cached: object = 0) -> dict[str, object]:
    return {
        "memory.max": limit,
        "memory.current": usage,
        "memory.stat": f"anon 17\nfile 99\ninactive_file {cached}\nactive_file 5",
    }


def at(folder: str, files: dict[str, object]) -> dict[str, object]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def test_cgroup_v2_counts_dropped_file_pages_as_free(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/job", **at("sys/fs/cgroup/job", group_v2(8 * GIB, 3 * GIB, GIB))})
    (limit,) = limits(tmp_path, {}, os.statvfs)
    assert limit == Limit("cgroup", 6 * GIB, "of 8.0 GiB in /sys/fs/cgroup/job/memory.max")


def test_cgroup_v2_takes_the_tightest_ancestor(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/slurm/job_1/step_0",
        **at("sys/fs/cgroup/slurm", group_v2(64 * GIB, 60 * GIB)),
        **at("sys/fs/cgroup/slurm/job_1", group_v2(4 * GIB, GIB)),
        **at("sys/fs/cgroup/slurm/job_1/step_0", group_v2("max", GIB)),
        **at("sys/fs/cgroup/other", group_v2(4096)),
    }
    assert found(tree(tmp_path, files)) == {"cgroup": 3 * GIB}
    tree(tmp_path, at("sys/fs/cgroup/slurm", group_v2(64 * GIB, 62 * GIB)))
    assert found(tmp_path) == {"cgroup": 2 * GIB}


@pytest.mark.parametrize("path", ["/", "/not/visible/here", "/../../docker/1"])
def test_cgroup_v2_inside_a_container(tmp_path: Path, path: str) -> None:
    tree(tmp_path, {"proc/self/cgroup": f"0::{path}", **at("sys/fs/cgroup", group_v2(2 * GIB, GIB))})
    tree(tmp_path, at("sys/fs", group_v2(4096)))  # outside the mount point: not a group
    assert found(tmp_path) == {"cgroup": GIB}


def test_cgroup_v2_beside_v1(tmp_path: Path) -> None:
    lines = "5:cpu,cpuacct:/a\n0::/job"
    tree(tmp_path, {"proc/self/cgroup": lines, **at("sys/fs/cgroup/unified/job", group_v2(2 * GIB, GIB))})
    assert found(tmp_path) == {"cgroup": GIB}


def test_a_group_over_its_limit_has_nothing_free(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/", **at("sys/fs/cgroup", group_v2(GIB, 2 * GIB))})
    assert found(tmp_path) == {"cgroup": 0}


def test_more_cached_than_used_is_all_free(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/", **at("sys/fs/cgroup", group_v2(GIB, MIB, 2 * MIB))})
    assert found(tmp_path) == {"cgroup": GIB}


def group_v1(limit: object, usage: object = 0, cached: object = 0) -> dict[str, object]:
    return {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": usage,
        "memory.stat": f"inactive_file 1\ntotal_inactive_file {cached}\ntotal_active_file 5",
    }


def test_cgroup_v1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "9:name=systemd:/x\n4:memory,hugetlb:/slurm/uid_0\n0::/",
        **at("sys/fs/cgroup/memory", group_v1(0x7FFFFFFFFFFFF000, GIB)),
        **at("sys/fs/cgroup/memory/slurm", group_v1(8 * GIB, 2 * GIB, GIB)),
        **at("sys/fs/cgroup/memory/slurm/uid_0", group_v1(0x7FFFFFFFFFFFF000, GIB)),
    }
    (limit,) = limits(tree(tmp_path, files), {}, os.statvfs)
    assert limit == Limit("cgroup", 7 * GIB, "of 8.0 GiB in /sys/fs/cgroup/memory/slurm/memory.limit_in_bytes")


@pytest.mark.parametrize("unlimited", [0x7FFFFFFFFFFFF000, (1 << 63) - 1, (1 << 63) - 65536, -1])
def test_cgroup_v1_without_a_limit(tmp_path: Path, unlimited: int) -> None:
    tree(tmp_path, {"proc/self/cgroup": "4:memory:/", **at("sys/fs/cgroup/memory", group_v1(unlimited, GIB))})
    assert found(tmp_path) == {}


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": ""}, {"proc/self/cgroup": "0::"}, {"proc/self/cgroup": "nonsense"},
        {"proc/self/cgroup": b"\xff\xfe:\0::"}, {"proc/self/cgroup": "::::"},
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"},
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "1048576"},
        {"proc/self/cgroup": "0::/", **at("sys/fs/cgroup", group_v2("4 GiB"))},
        {"proc/self/cgroup": "0::/", **at("sys/fs/cgroup", group_v2("", 1))},
        {"proc/self/cgroup": "0::/", **at("sys/fs/cgroup", group_v2(GIB, "many"))},
        {"proc/self/cgroup": "0::/", **at("sys/fs/cgroup", group_v2(b"\xb2"))},
        {"proc/self/cgroup": "0::/", **at("sys/fs/cgroup", group_v2("9" * 5000))},
        {"proc/self/cgroup/is a folder": ""}, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max/folder": ""},
        {"proc/meminfo": ""}, {"proc/meminfo": "MemAvailable:"}, {"proc/meminfo": "MemAvailable: lots kB"},
        {"proc/meminfo": "MemTotal: 5 kB\nMemFree: 4 kB"}, {"proc/meminfo": b"\xff\xff"},
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_left_out(tmp_path: Path, files: dict[str, object]) -> None:
    assert found(tree(tmp_path, files)) == {}


@pytest.mark.parametrize("stat", ["", "inactive_file", "inactive_file x", b"\xff"])
def test_without_statistics_nothing_is_reclaimable(tmp_path: Path, stat: object) -> None:
    files = {**group_v2(GIB, MIB), "memory.stat": stat}
    tree(tmp_path, {"proc/self/cgroup": "0::/", **at("sys/fs/cgroup", files)})
    assert found(tmp_path) == {"cgroup": GIB - MIB}


@pytest.mark.parametrize(
    ("value", "expected"), [("4096", 4 * GIB), (" 1 ", MIB), ("0", None), ("", None), ("4G", None), ("-5", None)]
)
def test_slurm(tmp_path: Path, value: str, expected: int | None) -> None:
    assert found(tmp_path, {"SLURM_MEM_PER_NODE": value}).get("SLURM_MEM_PER_NODE") == expected


def test_available_memory(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/meminfo": "MemTotal:  9 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\nBuffers: 3 kB"})
    assert found(tmp_path) == {"MemAvailable": 2 * MIB}


def test_all_sources_at_once(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/",
        "proc/meminfo": "MemAvailable: 1048576 kB",
        "dev/shm/x": "",
        **at("sys/fs/cgroup", group_v2(3 * GIB)),
    }
    result = limits(tree(tmp_path, files), {"SLURM_MEM_PER_NODE": "2048"})
    assert [limit.name for limit in result] == ["/dev/shm", "cgroup", "SLURM_MEM_PER_NODE", "MemAvailable"]
    assert [limit.bytes_free for limit in result[1:]] == [3 * GIB, 2 * GIB, GIB]


SHM = Limit("/dev/shm", 8 * GIB, "of 10.0 GiB")
GROUP = Limit("cgroup", 9 * GIB, "of 9.5 GiB in /sys/fs/cgroup/memory.max")


def test_the_error_has_the_numbers_and_the_remedy() -> None:
    with pytest.raises(MemoryLimitError) as caught:
        check(12 * GIB, 4, [GROUP, SHM])
    assert str(caught.value) == (
        "4 ranks on this node need 12.0 GiB of shared memory, /dev/shm has 8.0 GiB free (of 10.0 GiB): "
        "lower dram_bytes to at most 2048 MiB or mount a larger /dev/shm"
    )
    assert isinstance(caught.value, CascadeError)
    assert isinstance(caught.value, MemoryError)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("cgroup", "larger memory limit"), ("SLURM_MEM_PER_NODE", "--mem"), ("MemAvailable", "more free memory"),
     ("quota", "raise that limit")],
)  # fmt: skip
def test_each_limit_has_its_remedy(name: str, remedy: str) -> None:
    with pytest.raises(MemoryLimitError, match=rf"1 rank on this node needs .*, {name} has 1\.0 GiB free .*{remedy}"):
        check(2 * GIB, 1, [SHM, Limit(name, GIB, "somewhere")])


def test_what_fits_is_allowed() -> None:
    assert check(8 * GIB, 4, [SHM, GROUP]) is None
    assert check(1 << 60, 4, []) is None
    with pytest.raises(MemoryLimitError):
        check(8 * GIB + 1, 4, [SHM, GROUP])


def test_where_no_page_fits_no_size_is_proposed() -> None:
    with pytest.raises(MemoryLimitError, match=r"has 8\.0 KiB free \(full\): mount a larger /dev/shm") as caught:
        check(GIB, 4, [Limit("/dev/shm", 8192, "full")])
    assert "dram_bytes" not in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(
    free=st.integers(1 << 16, 1 << 44),
    dram_bytes=st.integers(4096, 1 << 40),
    ranks=st.integers(1, 128),
    fixed=st.integers(0, 1 << 20),
)
def test_the_proposed_size_fits_and_hardly_more_does(free: int, dram_bytes: int, ranks: int, fixed: int) -> None:
    def required(dram: int) -> int:
        return ranks * (dram + dram // 16 + fixed)

    limit = [Limit("/dev/shm", free, "of a test")]
    try:
        check(required(dram_bytes), ranks, limit, dram_bytes=dram_bytes, fixed_bytes=ranks * fixed)
    except MemoryLimitError as error:
        if "dram_bytes" in str(error):
            largest = parse_size(str(error).rpartition("at most ")[2].partition(" or")[0])
            assert 4096 <= largest < dram_bytes
            assert largest % 4096 == 0
            assert required(largest) <= free + ranks  # the sixteenth of each rank was rounded down, too
            assert required(largest + MIB + 4096) > free
        else:
            assert required(8192) > free
    else:
        assert required(dram_bytes) <= free


def test_the_proposed_size_passes() -> None:
    with pytest.raises(MemoryLimitError) as caught:
        check(40 * 300 * MIB, 40, [SHM])
    text = str(caught.value).rpartition("at most ")[2].partition(" or")[0]
    assert check(40 * parse_size(text), 40, [SHM]) is None


def test_auto_takes_a_share_of_the_tightest() -> None:
    assert auto_dram([SHM, GROUP], 4) == GIB
    assert auto_dram([GROUP, SHM], 1, share=0.25) == 2 * GIB
    assert auto_dram([Limit("cgroup", 10_000_000, "x")], 3) == 10_000_000 // 6 // 4096 * 4096


def test_auto_without_room_or_knowledge() -> None:
    with pytest.raises(MemoryLimitError, match=r"/dev/shm has 8\.0 KiB free \(x\), not a page for each of 4 ranks"):
        auto_dram([Limit("/dev/shm", 8192, "x")], 4)
    with pytest.raises(MemoryLimitError, match="no memory limit of this node can be read: set dram_bytes"):
        auto_dram([], 4)
