"""Read-ahead, on real files and the real page cache. About 5 s."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimo_solver.lab.bench.readahead import resident_bytes
from aimo_solver.server import machine, readahead
from aimo_solver.server.readahead import StopReason, missing_ranges, read_ahead

MB = 1 << 20
PAGE = mmap.PAGESIZE


def evict(*paths: Path) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder on a disk, where files can be evicted from the page cache (a tmpfs cannot)."""
    for place in (None, "/var/tmp", "."):
        with tempfile.TemporaryDirectory(dir=place) as name:
            probe = Path(name) / "probe"
            probe.write_bytes(os.urandom(PAGE))
            evict(probe)
            if resident_bytes(probe) == 0:
                probe.unlink()
                yield Path(name)
                return
    pytest.skip("no folder whose files leave the page cache")


def made(path: Path, size: int) -> Path:
    path.write_bytes(np.random.default_rng(size).bytes(size))
    evict(path)
    assert resident_bytes(path) == 0
    return path


def nearly(part: int, whole: int) -> bool:
    """Returns whether `part` is the whole, up to pages that the kernel has reclaimed already."""
    return 0.9 * whole < part <= whole


def test_everything_missing_is_read_and_then_resident(folder: Path) -> None:
    sizes = [24 * MB + 123, 5 * MB, 1]
    files = [made(folder / f"{size}", size) for size in sizes]
    report = read_ahead(files, threads=4, piece_bytes=4 * MB)
    assert report.stop is StopReason.DONE
    # A page that the kernel read ahead for a neighbouring piece is found, not read.
    assert report.bytes_read + report.bytes_resident == report.total_bytes == sum(sizes)
    assert all(nearly(resident_bytes(file), size) for file, size in zip(files, sizes, strict=True))


def test_the_subfolders_of_a_folder_are_not_read(folder: Path) -> None:
    """Models have the same weights there, in formats that the server does not read."""
    (folder / "original").mkdir()
    other = made(folder / "original" / "a", 2 * MB)
    made(folder / "b", MB)
    assert read_ahead([folder]).total_bytes == MB
    assert resident_bytes(other) == 0


def test_resident_pages_are_not_read_again(folder: Path) -> None:
    file = made(folder / "a", 8 * MB)
    read_ahead([file])
    report = read_ahead([file])
    assert nearly(report.bytes_resident, 8 * MB)
    assert report.bytes_read + report.bytes_resident == 8 * MB


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(touched=st.sets(st.integers(0, 63)), tail=st.integers(1, PAGE))
def test_exactly_the_missing_pages_are_found(folder: Path, touched: set[int], tail: int) -> None:
    size = 63 * PAGE + tail
    file = made(folder / "a", size)
    with file.open("rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        for page in touched:
            os.pread(opened.fileno(), 1, page * PAGE)
        missing = missing_ranges(opened.fileno(), 0, size)
    found = {page for start, end in missing for page in range(start // PAGE, -(-end // PAGE))}
    assert found == set(range(64)) - touched
    assert all(end <= size for _, end in missing)


def test_a_file_that_cannot_be_read_is_reported_and_the_rest_read(folder: Path) -> None:
    good = made(folder / "good", MB)
    loop = folder / "loop"
    loop.symlink_to(loop)
    report = read_ahead([folder / "missing", loop, good])
    assert report.bytes_read == MB
    assert set(report.problems) == {folder / "missing", loop}
    assert "2 files left out" in str(report)


def test_an_error_in_the_middle_of_a_file_is_reported_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = made(folder / "bad", 16 * MB), made(folder / "good", MB)
    read = os.preadv

    def broken(descriptor: int, *args: object) -> int:
        if os.fstat(descriptor).st_size == 16 * MB:
            raise OSError(5, "Input/output error")
        return read(descriptor, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", broken)
    report = read_ahead([bad, good], piece_bytes=MB)
    assert report.problems == {bad: "Input/output error"}
    assert report.bytes_read == MB


def test_no_more_than_the_limit_is_held(folder: Path) -> None:
    files = [made(folder / name, 8 * MB) for name in "ab"]
    report = read_ahead(files, threads=3, piece_bytes=MB, limit_bytes=5 * MB + 17)
    assert report.stop is StopReason.MEMORY
    assert report.bytes_read + report.bytes_resident == 5 * MB  # the kernel itself reads a little ahead
    evict(*files)
    read_ahead(files[:1])
    report = read_ahead(files, piece_bytes=MB, limit_bytes=10 * MB)
    assert report.bytes_read + report.bytes_resident == 10 * MB  # what is resident counts too


def test_the_largest_file_comes_first(folder: Path) -> None:
    small, large = made(folder / "a", MB), made(folder / "b", 4 * MB)
    read_ahead([small, large], threads=1, limit_bytes=4 * MB)
    assert resident_bytes(small) == 0
    assert nearly(resident_bytes(large), 4 * MB)


def test_a_set_event_stops_it(folder: Path) -> None:
    file = made(folder / "a", 16 * MB)
    stop = threading.Event()
    stop.set()
    report = read_ahead([file], stop=stop)
    assert (report.stop, report.bytes_read) == (StopReason.STOPPED, 0)


def test_it_stops_when_another_process_reads_faster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "_EVIDENT_BYTES", MB)
    file = made(folder / "a", 32 * MB)

    class Server(threading.Event):
        """Reads the whole file as soon as the reader starts; is never set."""

        def is_set(self) -> bool:
            file.read_bytes()
            return False

    report = read_ahead([file], threads=1, piece_bytes=MB, stop=Server())
    assert report.stop is StopReason.OVERTAKEN
    assert report.bytes_read < MB


def test_a_kernel_that_reports_every_page_as_resident_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = made(folder / "a", 2 * MB)

    class Liar:
        def mincore(self, address: object, length: object, vector: object) -> int:
            readahead.ctypes.memset(vector, 1, -(-length.value // PAGE))  # type: ignore[attr-defined]
            return 0

    monkeypatch.setattr(readahead, "_libc", Liar())
    assert read_ahead([file]).bytes_read == 2 * MB


def test_nothing_to_read_is_done() -> None:
    report = read_ahead([])
    assert (report.stop, report.total_bytes) == (StopReason.DONE, 0)


GIB = 1 << 30


def test_every_limited_control_group_counts(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    for folder, limit in ((root, "max"), (root / "box", str(10 * GIB)), (root / "box/job", str(20 * GIB))):
        folder.mkdir()
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text(str(7 * GIB))
        (folder / "memory.stat").write_text(f"anon {GIB}\ninactive_file {4 * GIB}\nactive_file {GIB}\n")
    membership.write_text("0::/box/job\n")
    limits = list(machine._cgroup_limits(root, membership))
    assert sorted(limits) == [(10 * GIB, 7 * GIB, 5 * GIB), (20 * GIB, 7 * GIB, 5 * GIB)]


def test_version_1_groups_are_read(tmp_path: Path) -> None:
    group = tmp_path / "cgroup/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(str(8 * GIB))
    (group / "memory.usage_in_bytes").write_text(str(3 * GIB))
    (group / "memory.stat").write_text(f"cache 1\ntotal_inactive_file {GIB}\ntotal_active_file {GIB}\n")
    (tmp_path / "membership").write_text("5:cpu,cpuacct:/a\n4:memory:/docker/abc\n")  # a path of the host
    assert list(machine._cgroup_limits(tmp_path / "cgroup", tmp_path / "membership")) == [(8 * GIB, 3 * GIB, 2 * GIB)]


@pytest.mark.slow
def test_a_limited_container_is_neither_overfilled_nor_killed(folder: Path) -> None:
    """A real control group of 256 MB that counts page cache, and a file of 400 MB."""
    group = Path(f"/sys/fs/cgroup/memory/aimo-test-{os.getpid()}")
    limit = group / "memory.limit_in_bytes"
    if not group.parent.joinpath("memory.limit_in_bytes").exists():
        group, limit = (parent := Path("/sys/fs/cgroup")) / group.name, parent / group.name / "memory.max"
    try:
        group.mkdir()
        limit.write_text(str(256 * MB))
    except OSError:
        if group.exists():
            group.rmdir()
        pytest.skip("no control group can be made here")
    file = made(folder / "a", 400 * MB)
    code = (
        f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        "from pathlib import Path; from aimo_solver.server.readahead import read_ahead\n"
        f"report = read_ahead([Path({str(file)!r})], piece_bytes=1 << 20)\n"
        "print(report.stop.value, report.bytes_read)"
    )
    try:
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    finally:
        group.rmdir()
    reason, read = run.stdout.split()
    assert reason == "memory"
    assert 0 < int(read) < 256 * MB
