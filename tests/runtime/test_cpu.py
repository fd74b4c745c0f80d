import os
import sys
import types
from pathlib import Path

import pytest

from runtime import cpu


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu.max": "100000 0"}, None),
    ],
)
def test_quota_of_a_container(files, quota, tmp_path):
    write(tmp_path, files)
    assert cpu.cpu_quota(tmp_path, tmp_path / "none") == quota


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


UNIT = "system.slice/galip-edge.service"


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        # systemd's CPUQuota=150 %: the unit's group has a limit, the root has no such file
        (f"0::/{UNIT}\n", {f"{UNIT}/cpu.max": "150000 100000\n"}, 1.5),
        (f"0::/{UNIT}\n", {f"{UNIT}/cpu.max": "max 100000\n"}, None),
        # the least of a group's and its ancestors' counts
        (
            f"0::/{UNIT}\n",
            {f"{UNIT}/cpu.max": "400000 100000", "system.slice/cpu.max": "200000 100000"},
            2.0,
        ),
        (
            f"0::/{UNIT}\n",
            {f"{UNIT}/cpu.max": "max 100000", "cpu.max": "300000 100000"},
            3.0,
        ),
        # version 1, alone and next to an empty version 2
        (
            f"4:memory:/elsewhere\n3:cpu,cpuacct:/{UNIT}\n0::/\n",
            {
                f"cpu,cpuacct/{UNIT}/cpu.cfs_quota_us": "250000",
                f"cpu,cpuacct/{UNIT}/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (
            f"3:cpu:/{UNIT}\n1:cpuset:/x\n",
            {f"cpu/{UNIT}/cpu.cfs_quota_us": "50000", f"cpu/{UNIT}/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        # a group of another controller, or one outside of the namespace, is not read
        ("3:memory:/x\n", {"memory/x/cpu.max": "100000 100000"}, None),
        ("0::/../../other\n", {"cpu.max": "200000 100000"}, 2.0),
    ],
)
def test_quota_of_the_processs_own_group(membership, files, quota, tmp_path):
    write(tmp_path, files)
    (tmp_path / "membership").write_text(membership)
    assert cpu.cpu_quota(tmp_path, tmp_path / "membership") == quota


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.5, 1), (None, 4), (64.0, 4)])
def test_cores_are_limited_by_affinity_and_quota(quota, cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cpu, "cpu_quota", lambda: quota)
    assert cpu.available_cores() == cores


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        (f"0::/{UNIT}\n", {f"{UNIT}/memory.max": "500000000\n", "memory.max": "max"}, 500_000_000),
        (f"0::/{UNIT}\n", {f"{UNIT}/memory.max": "max\n"}, None),
        (f"4:memory:/{UNIT}\n", {f"memory/{UNIT}/memory.limit_in_bytes": "4096"}, 4096),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("", {}, None),
    ],
)
def test_memory_limit(membership, files, limit, tmp_path):
    write(tmp_path, files | {"membership": membership})
    assert cpu.memory_limit(tmp_path, tmp_path / "membership") == limit


MACHINES = Path(__file__).parents[1] / "fixtures" / "machines"


@pytest.fixture
def machine(monkeypatch):
    """Pretends to be another machine, by what its system says of the processor."""

    def become(platform, **readings):
        monkeypatch.setattr(cpu.sys, "platform", platform)
        for name, text in readings.items():
            monkeypatch.setattr(cpu, name, lambda text=text: text)
        cpu._of_windows.cache_clear()

    yield become
    cpu._of_windows.cache_clear()


def test_a_raspberry_pi_5(machine):
    machine("linux", _cpuinfo=cpu._cpuinfo(MACHINES / "raspberry-pi-5.cpuinfo"))
    assert cpu.cpu_name() == "Cortex-A76 (Raspberry Pi 5 Model B Rev 1.0)"
    assert cpu.instruction_sets() == ["NEON", "NEON FP16", "NEON DOTPROD"]
    assert not cpu.lacks_vnni()


def test_a_mac(machine):
    machine("darwin", _sysctl=(MACHINES / "mac-m3.sysctl").read_text())
    assert cpu.cpu_name() == "Apple M3"
    assert cpu.instruction_sets() == ["NEON", "NEON FP16", "NEON DOTPROD", "I8MM", "BF16"]
    assert not cpu.lacks_vnni()


@pytest.mark.parametrize(
    ("features", "sets", "slow"),
    [
        ({"avx2", "fma"}, ["AVX2"], True),
        ({"avx2", "avx_vnni"}, ["AVX2", "AVX-VNNI"], False),
        ({"avx2", "avx512f", "avx512_vnni"}, ["AVX2", "AVX-512", "AVX-512 VNNI"], False),
    ],
)
def test_windows(features, sets, slow, machine, monkeypatch):
    """By the names that archspec gives to the bits of CPUID."""
    detect = types.SimpleNamespace(detected_info=lambda: types.SimpleNamespace(features=features))
    modules = types.SimpleNamespace(brand_string=lambda: "a CPU", detect=detect)
    monkeypatch.setitem(sys.modules, "archspec", types.SimpleNamespace(cpu=modules))
    monkeypatch.setitem(sys.modules, "archspec.cpu", modules)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    machine("win32")
    assert cpu.cpu_name() == "a CPU"
    assert cpu.instruction_sets() == sets
    assert cpu.lacks_vnni() == slow


def test_the_flags_have_archspecs_names():
    schema = pytest.importorskip("archspec.cpu.schema")
    known = {bit["name"] for call in schema.CPUID_JSON["flags"] for bit in call["bits"]}
    x86 = {flag for flag in cpu._INSTRUCTION_SETS if flag.startswith(("avx", "amx"))}
    assert x86 <= known


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_a_system_that_says_nothing(platform, machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "archspec", None)
    monkeypatch.setitem(sys.modules, "archspec.cpu", None)
    machine(platform, _cpuinfo={}, _sysctl="")
    assert cpu.cpu_name()
    assert cpu.instruction_sets() == []
