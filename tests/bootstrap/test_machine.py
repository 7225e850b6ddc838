"""The checks of the machine and its network, on made-up facts: healthy, broken, not read, and what only looks wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from bootstrap import requirements
from bootstrap.facts import (
    Disk,
    Dist,
    EnvFacts,
    Facts,
    Gpu,
    GpuFacts,
    MachineFacts,
    NetworkFacts,
)
from bootstrap.facts.collect import DEEP_TIMEOUTS_S, TIMEOUTS_S
from bootstrap.findings import FAIL, OK, SKIPPED, UNKNOWN, WARN, Finding
from bootstrap.profiles import Apex, FlashAttention, Needs, Profile
from bootstrap.profiles import Gpu as DeclaredGpu

GB = 10**9
ALL = (*TIMEOUTS_S, *DEEP_TIMEOUTS_S)
#: Made up: no such machine was seen. A container on a node with two GPUs, everything as it should be.
HEALTHY = Facts(
    workspace="/w",
    machine=MachineFacts(
        system="Linux",
        machine="x86_64",
        libc="glibc 2.31",
        cores=12,
        memory_total=64 * GB,
        memory_available=60 * GB,
        disks={
            "workspace": Disk("/w", 500 * GB, 900 * GB, 10**7, False, True, "ext4"),
            "tmp": Disk("/tmp", 50 * GB, 90 * GB, 10**7, False, True, "ext4"),  # noqa: S108  made up
            "home": Disk("/home/u", 50 * GB, 90 * GB, 10**7, False, True, "nfs4"),
            "shm": Disk("/dev/shm", 30 * GB, 32 * GB, 10**6, True, True, "tmpfs"),  # noqa: S108  made up
        },
        limits={
            "open_files": 1024,
            "hard_open_files": 1048576,
            "processes": 4096,
            "hard_processes": 4096,
            "memlock": 65536,
            "hard_memlock": 65536,
            "pids": -1,
        },
        encoding="utf-8",
        scheduler="slurm",
        variables={"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "LANG": "C.UTF-8"},
    ),
    gpu=GpuFacts("nvml", "535.1", "12.2", (Gpu("a"), Gpu("b"))),
    network=NetworkFacts({"eth0": "up", "eth1": "down", "lo": "up"}, (), 29500, True),
    env=EnvFacts("/w/.venv", "absent"),
    collected=ALL,
)
PROFILE = Profile(
    name="made-up",
    description="",
    folder=Path("/locks"),
    recipe="",
    engines={},
    requirements=(),
    pythons=("3.9",),
    machine=Needs(glibc="2.17", disk_gb=60, tmp_gb=10, home_gb=5, memory_gb=16, memory_gb_per_job=4, shm_gb=1),
    apex=Apex(("apex_C",)),
    flash_attention=FlashAttention("2.4.2"),
)
IDS = (
    *("system", "memory", "disk", "disk-tmp", "disk-home", "tmp-exec", "shm", "open-files", "processes", "memlock"),
    *("locale", "port", "interfaces", "scheduler"),
)


def check(name: str, facts: Facts = HEALTHY, profile: Profile = PROFILE) -> Finding:
    (requirement,) = requirements.load([f"machine.{name}"])
    assert requirement.id == f"machine.{name}"
    return requirement.check(profile, facts)


def of(**changes: object) -> Facts:
    return replace(HEALTHY, machine=replace(HEALTHY.machine, **changes))  # type: ignore[arg-type]  # of any field


def disk(name: str, **changes: object) -> Facts:
    changed = replace(HEALTHY.machine.disks[name], **changes)  # type: ignore[arg-type]  # as above
    return of(disks={**HEALTHY.machine.disks, name: changed})


def limits(**values: int) -> Facts:
    return of(limits={**HEALTHY.machine.limits, **values})


def without_limit(name: str) -> Facts:
    return of(limits={key: value for key, value in HEALTHY.machine.limits.items() if key != name})


def variables(values: Mapping[str, str], scheduler: str = "slurm", **of_network: object) -> Facts:
    changed = of(variables=dict(values), scheduler=scheduler)
    return replace(changed, network=replace(HEALTHY.network, **of_network))  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize("name", IDS)
def test_a_healthy_machine_gives_no_alarm(name: str) -> None:
    finding = check(name)
    assert finding.status == OK
    assert finding.summary
    assert finding.evidence


@pytest.mark.parametrize("name", [name for name in IDS if name not in ("scheduler", "interfaces", "memlock")])
def test_what_was_not_read_is_unknown(name: str) -> None:
    assert check(name, replace(Facts("/w"), collected=ALL)).status == UNKNOWN


WRONG: list[tuple[str, Facts, str, str]] = [
    ("system", of(system="Darwin"), FAIL, "This is Darwin, not Linux."),
    ("system", of(machine="ppc64le"), FAIL, "The processor is ppc64le"),
    ("system", of(libc="musl"), FAIL, "The C library is musl"),
    ("system", of(libc="glibc 2.5"), FAIL, "glibc 2.5 is older than 2.17."),
    ("system", of(libc=""), UNKNOWN, "could not be read"),
    ("memory", of(memory_total=15 * GB), FAIL, "15.0 GB of memory; this profile needs 16.0 GB."),
    ("memory", of(memory_available=30 * GB), WARN, "export MAX_JOBS=6"),
    ("memory", of(variables={"MAX_JOBS": "20"}), WARN, "20 compilers at a time"),
    ("memory", of(variables={"MAX_JOBS": "many"}, memory_available=GB), WARN, "export MAX_JOBS=1"),
    ("memory", of(memory_available=None), UNKNOWN, "could not be told"),
    ("disk", disk("workspace", free=59 * GB), FAIL, "59.0 GB free in /w; 60.0 GB are needed."),
    ("disk", disk("workspace", writable=False), FAIL, "/w cannot be written to."),
    ("disk", disk("workspace", writable=False), FAIL, "Make it writable for you, or choose another workspace"),
    ("disk", disk("workspace", writable=False, obstacle="/w"), FAIL, "/w cannot be used: /w is not a folder."),
    ("disk", disk("workspace", inodes_free=0), FAIL, "no inodes are left"),
    ("disk", disk("workspace", free=None), UNKNOWN, "could not be read"),
    ("disk-tmp", disk("tmp", free=GB), FAIL, "export TMPDIR=/w/.ucllm/tmp"),
    ("disk-tmp", disk("tmp", absent=True), FAIL, "The temporary folder /tmp does not exist."),
    ("disk-home", disk("home", absent=True), FAIL, "mkdir -p /home/u"),
    ("disk-home", disk("home", obstacle="/home"), FAIL, "/home/u cannot be used: /home is not a folder."),
    ("disk-home", disk("home", free=GB), FAIL, "1.0 GB free in /home/u"),
    ("tmp-exec", disk("tmp", noexec=True), FAIL, "mounted noexec"),
    ("tmp-exec", disk("tmp", writable=False), FAIL, "mkdir -p /w/.ucllm/tmp"),
    ("tmp-exec", disk("tmp", absent=True), FAIL, "or use a temporary folder elsewhere"),
    ("tmp-exec", disk("tmp", noexec=None), UNKNOWN, "could not be looked at"),
    ("shm", disk("shm", total=2**26, free=2**26), FAIL, "only 64 MB; 2.0 GB are needed"),
    ("shm", disk("shm", total=0, free=0, writable=False), FAIL, "--shm-size=2g"),
    ("shm", disk("shm", free=10**6), FAIL, "is full: 1 MB free"),
    ("open-files", limits(open_files=256), FAIL, "ulimit -S -n 1024"),
    ("open-files", limits(open_files=256, hard_open_files=512), FAIL, "hard limit raised to 1024"),
    ("open-files", without_limit("open_files"), UNKNOWN, "could not be read"),
    ("processes", limits(processes=100, hard_processes=-1), FAIL, "ulimit -S -u 1024"),
    ("processes", limits(pids=100), FAIL, "--pids-limit=1024"),
    ("locale", of(encoding="EUC-JP", variables={"LANG": "ja_JP.eucJP"}), FAIL, "export LC_ALL=C.UTF-8"),
    ("locale", of(encoding="ascii", variables={"PYTHONUTF8": "0"}), FAIL, "unset PYTHONUTF8"),
    ("port", variables({}, port_free=False, port_owner="4711 (python train.py)"), WARN, "export MASTER_PORT=29600"),
    ("port", variables({}, port_free=False, port_owner="4711 (python train.py)"), WARN, "by process 4711 (python"),
    ("port", variables({}, port_free=False), WARN, "held by: a program of another user"),
    ("port", variables({}, port=80, port_free=False), WARN, "belong to root"),
    ("port", variables({}, port_free=None), UNKNOWN, "could not be tried"),
    ("port", variables({"MASTER_PORT": "99999"}), FAIL, "MASTER_PORT is no port: 99999"),
    ("interfaces", variables({"NCCL_SOCKET_IFNAME": "ib0"}), FAIL, "unset NCCL_SOCKET_IFNAME"),
    ("interfaces", variables({"NCCL_SOCKET_IFNAME": "=eth"}), FAIL, "not here: eth"),
    ("interfaces", variables({"NCCL_SOCKET_IFNAME": "eth1"}), FAIL, "not up"),
    ("interfaces", variables({"NCCL_SOCKET_IFNAME": "^eth,lo"}), FAIL, "NCCL_SOCKET_IFNAME=^eth,lo"),
    ("interfaces", variables({"NCCL_SOCKET_IFNAME": "=eth0,ib0"}), WARN, "some of what is named is not here"),
    ("interfaces", variables({"GLOO_SOCKET_IFNAME": "eth0,ens4"}), FAIL, "GLOO_SOCKET_IFNAME: not here: ens4"),
    ("interfaces", variables({"NCCL_IB_HCA": "mlx5_0:1"}), FAIL, "NCCL_IB_HCA: not here: mlx5_0"),
    ("interfaces", variables({"NCCL_IB_HCA": "mlx5"}, adapters=None), UNKNOWN, "adapters could not be read"),
    ("interfaces", variables({"NCCL_SOCKET_IFNAME": "eth"}, interfaces={}), UNKNOWN, "could not be read"),
    ("memlock", variables({"NCCL_IB_HCA": "mlx5_0"}), WARN, "Only 64 KB of memory may be locked"),
    ("memlock", variables({}, interfaces={"ib0": "up"}), WARN, "memlock unlimited"),
    ("scheduler", variables({"NHOSTS": "2", "JOB_ID": "1", "PE_HOSTFILE": "/x"}), WARN, "Slurm is here"),
    ("scheduler", variables({"SLURM_JOB_ID": "1"}, "sge"), WARN, "unset SLURM_JOB_ID"),
    ("scheduler", variables({"NHOSTS": "1"}, "pbs"), WARN, "PBS is here"),
    ("scheduler", variables({"PBS_JOBID": "1"}, ""), WARN, "There is no scheduler here"),
]


@pytest.mark.parametrize(("name", "facts", "status", "words"), WRONG)
def test_what_is_wrong_is_told_with_what_helps(name: str, facts: Facts, status: str, words: str) -> None:
    finding = check(name, facts)
    assert finding.status == status, finding
    remedy = finding.remedy
    assert words in "\n".join(
        [finding.summary, *finding.evidence, *((remedy.text, *remedy.commands) if remedy else ())]
    )
    assert finding.evidence
    if status != UNKNOWN:
        assert remedy is not None
        assert not remedy.automatic


FINE: list[tuple[str, Facts]] = [
    ("memory", of(variables={"MAX_JOBS": "3"}, memory_available=20 * GB)),
    ("interfaces", variables({"NCCL_SOCKET_IFNAME": "ens,eth"})),
    ("interfaces", variables({"NCCL_SOCKET_IFNAME": "=eth0"})),
    ("interfaces", variables({"NCCL_SOCKET_IFNAME": "^docker0,virbr"})),
    ("interfaces", variables({"NCCL_SOCKET_IFNAME": "^=lo", "GLOO_SOCKET_IFNAME": "eth0,"})),
    ("interfaces", variables({"NCCL_IB_HCA": "=mlx5_0:1,mlx5_1:1"}, adapters=("mlx5_0", "mlx5_1"))),
    ("interfaces", variables({"NCCL_IB_HCA": "^mlx5_3"})),
    ("interfaces", variables({"NCCL_IB_HCA": "mlx5_0", "NCCL_IB_DISABLE": "1"})),
    ("memlock", variables({"NCCL_IB_HCA": "mlx5_0", "NCCL_IB_DISABLE": "1"})),
    ("scheduler", variables({"PE_HOSTFILE": "/x", "NHOSTS": "2", "JOB_ID": "1"}, "sge")),
    ("scheduler", variables({"SGE_ROOT": "/opt/sge", "SLURM_CONF": "/x", "SLURM_JOB_ID": "1"})),
    ("scheduler", variables({"NHOSTS": "1", "JOB_ID": "mine"}, "")),
    ("locale", of(encoding="utf8")),
    ("open-files", limits(open_files=-1)),
]


@pytest.mark.parametrize(("name", "facts"), FINE)
def test_what_only_looks_wrong_is_fine(name: str, facts: Facts) -> None:
    assert check(name, facts).status == OK, check(name, facts)


def test_with_infiniband_an_unlimited_memlock_is_fine_and_an_unread_one_unknown() -> None:
    with_ib = replace(HEALTHY, network=replace(HEALTHY.network, interfaces={"ib0": "up"}))
    free = replace(with_ib, machine=replace(HEALTHY.machine, limits={"memlock": -1}))
    assert check("memlock", free).status == OK
    assert check("memlock", replace(with_ib, machine=replace(HEALTHY.machine, limits={}))).status == UNKNOWN


def test_what_is_installed_needs_neither_its_room_nor_its_compilers_again() -> None:
    dists = {name: Dist("1") for name in ("torch", "apex", "flash-attn")}
    tight = of(
        memory_available=8 * GB,
        disks={**HEALTHY.machine.disks, "workspace": replace(HEALTHY.machine.disks["workspace"], free=20 * GB)},
    )
    assert (check("memory", tight).status, check("disk", tight).status) == (WARN, FAIL)
    built = replace(tight, env=EnvFacts("/w/.venv", "ready", dists=dists))
    assert (check("memory", built).status, check("disk", built).status) == (OK, OK)
    full = replace(built, machine=replace(built.machine, disks=disk("workspace", free=GB).machine.disks))
    assert check("disk", full).status == FAIL


def test_what_the_profile_does_not_need_is_skipped() -> None:
    nothing = replace(PROFILE, machine=Needs(), apex=None, flash_attention=None)
    assert check("shm", profile=nothing).status == SKIPPED
    assert check("disk-home", profile=nothing).status == SKIPPED
    assert check("memory", of(memory_available=GB), nothing).status == OK, "nothing is compiled"


def test_shared_memory_is_counted_for_each_gpu_seen_else_declared() -> None:
    small = disk("shm", free=3 * GB, total=4 * GB)
    assert check("shm", small).status == OK
    unseen = replace(small, gpu=GpuFacts())
    declared = replace(PROFILE, gpu=DeclaredGpu("A100", "8.0", 40, count=8))
    assert check("shm", unseen).status == OK
    assert check("shm", unseen, declared).status == FAIL


def test_a_temporary_folder_in_a_workspace_that_is_no_better_is_not_advised() -> None:
    both = disk("tmp", noexec=True)
    both = replace(
        both, machine=replace(both.machine, disks={**both.machine.disks, "workspace": Disk("/w", noexec=True)})
    )
    remedy = check("tmp-exec", both).remedy
    assert remedy is not None
    assert remedy.commands == ()
