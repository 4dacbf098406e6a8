from __future__ import annotations

import gc
import platform
import weakref
from pathlib import Path

import numpy as np
import psutil
import pytest

from chestct.errors import ReadError
from chestct.memory import _available_bytes, require_memory
from chestct.serve.jobs import _give_back_memory


def machine(root: Path, available_kib: int, cgroup: str, files: dict[str, str]) -> Path:
    """A root folder that says what a machine and its control groups say."""
    told = {
        "proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {available_kib} kB\n",
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }
    for name, text in told.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(folder: str, limit: str) -> dict[str, str]:
    return {
        f"{folder}memory.max": limit,
        f"{folder}memory.current": "700",
        f"{folder}memory.stat": "anon 500\ninactive_file 60\nactive_file 40\n",
    }


def test_without_a_limit_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert _available_bytes(machine(tmp_path, 5, "0::/a\n", group("a/", "max"))) == 5 * 1024


@pytest.mark.parametrize("folder", ["", "a/", "a/b/"])
def test_the_limit_of_any_group_around_counts_with_what_it_can_give_up(
    tmp_path: Path, folder: str
) -> None:
    assert _available_bytes(machine(tmp_path, 5, "0::/a/b\n", group(folder, "1000"))) == 400


def test_version_1_of_control_groups_is_read_too(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "1000",
        "memory/memory.usage_in_bytes": "700",
        "memory/memory.stat": "total_inactive_file 30\ntotal_active_file 20\n",
    }
    assert _available_bytes(machine(tmp_path, 5, "9:cpu:/\n4:memory:/gone\n", files)) == 350


def test_where_nothing_tells_nothing_is_refused(tmp_path: Path) -> None:
    assert _available_bytes(tmp_path) is None
    require_memory(1e18, "Work", root=tmp_path)


def test_what_does_not_fit_is_refused_with_both_sizes_and_the_remedy(tmp_path: Path) -> None:
    root = machine(tmp_path, 2_000_000, "", {})
    require_memory(2e9, "Work", root=root)
    with pytest.raises(ReadError, match=r"Work takes about 5\.0 GB .* 2\.0 GB are free.*raise"):
        require_memory(5e9, "Work", root=root)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep no memory so")
def test_memory_that_is_free_between_what_is_in_use_is_given_back() -> None:
    process, block = psutil.Process(), 2**16
    blocks = [np.ones(block, dtype=np.uint8) for _ in range(2**10)]
    in_use = blocks[-1:]
    before = process.memory_info().rss
    del blocks
    _give_back_memory()
    assert before - process.memory_info().rss > 2**10 * block / 2
    assert in_use[0].all()


def test_what_only_refers_to_itself_is_given_back_too() -> None:
    class Held:
        """What a scan leaves: part of a cycle."""

    held = Held()
    held.itself = held  # type: ignore[attr-defined]
    seen = weakref.ref(held)
    gc.disable()
    try:
        del held
        assert seen() is not None
        _give_back_memory()
    finally:
        gc.enable()
    assert seen() is None
