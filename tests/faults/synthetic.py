"""Facts of machines that the tests do not own, composed. They are named ``synthetic`` because nobody collected them.

:func:`l4_node` is a GCP ``g2-standard-12`` node as the guide uses it, everything as profile ``gcp-2024.02`` wants it:
12 vCPUs and 48 GB (the provider's machine type table), an L4 with 23,034 MiB and compute capability 8.9 (NVIDIA's
data sheet and CUDA GPU table), driver 535.129.03, which runs CUDA 12.2 (NVIDIA's driver release notes), Debian 11
with glibc 2.31 and g++ 10.2. What the environment holds comes from the profile and its locks.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from bootstrap import facts as f
from bootstrap.facts.collect import DEEP_TIMEOUTS_S, TIMEOUTS_S
from bootstrap.profiles import Profile
from bootstrap.requirements import env_hooks
from bootstrap.requirements.ops_deepspeed import LIBRARIES

GB = 10**9
ENV = "/home/user/ucllm_nedo_dev/train/.venv"
WORKSPACE = "/home/user/ucllm_nedo_dev/train"
PLACES = {"workspace": WORKSPACE, "tmp": "/tmp", "home": "/home/user"}  # noqa: S108  composed
SITE = f"{ENV}/lib/python3.9/site-packages"
SUFFIX = ".cpython-39-x86_64-linux-gnu.so"


def l4_node(profile: Profile) -> f.Facts:
    """A healthy L4 node for ``profile``, which must be ``gcp-2024.02``."""
    assert profile.conda
    assert profile.deepspeed
    assert profile.apex
    assert profile.flash_attention
    disk = f.Disk("", free=400 * GB, total=500 * GB, inodes_free=10**7, noexec=False, writable=True, kind="ext4")
    shm = dataclasses.replace(disk, path="/dev/shm", free=24 * GB, total=24 * GB, kind="tmpfs")  # noqa: S108  composed
    extensions: dict[str, tuple[str, ...]] = {
        name: (f"{SITE}/{name}{SUFFIX}",) for name in (*profile.apex.modules, "flash_attn_2_cuda")
    }
    libraries = tuple(f"{SITE}/deepspeed/ops/{op}{SUFFIX}" for op in _libraries(profile.deepspeed.ops))
    dists = {pin.name: f.Dist(pin.version) for pin in profile.pins_for("3.9")}
    dists |= {
        "torch": f.Dist("2.2.0"),
        "deepspeed": f.Dist(profile.deepspeed.version),
        "apex": f.Dist("0.1"),
        "flash-attn": f.Dist(profile.flash_attention.version),
        "megatron-core": f.Dist("0.2.0"),
    }
    return f.Facts(
        workspace=WORKSPACE,
        profile=profile.name,
        machine=f.MachineFacts(
            system="Linux",
            machine="x86_64",
            libc="glibc 2.31",
            cores=12,
            memory_total=48 * GB,
            memory_available=45 * GB,
            disks={name: dataclasses.replace(disk, path=path) for name, path in PLACES.items()} | {"shm": shm},
            limits={"open_files": 65536, "processes": 190000, "memlock": -1},
            encoding="utf-8",
            scheduler="slurm",
            variables={"SLURM_JOB_ID": "7", "LD_LIBRARY_PATH": f"{ENV}/lib", "CONDA_PREFIX": ENV, "MAX_JOBS": "8"},
        ),
        gpu=f.GpuFacts("nvml", "535.129.03", "12.2", (f.Gpu("NVIDIA L4", "8.9", 24_152_899_584, 23_900_000_000, 0),)),
        tools=f.ToolsFacts(
            path=(f"{ENV}/bin", "/usr/bin"),
            programs={
                "make": f.Program("/usr/bin/make", "4.3"),
                "git": f.Program("/usr/bin/git", "2.30.2"),
                "ninja": f.Program(f"{ENV}/bin/ninja", "1.11.1"),
                "gcc": f.Program("/usr/bin/gcc", "10.2.1"),
                "g++": f.Program("/usr/bin/g++", "10.2.1"),
                "nvcc": f.Program(f"{ENV}/bin/nvcc", "11.8.89"),
                "python3-config": f.Program(f"{ENV}/bin/python3-config"),
            },
            user_nvcc=f.Program(f"{ENV}/bin/nvcc", "11.8.89"),
            headers={"libaio.h": "/usr/include/libaio.h"},
            libraries={"libaio": "/usr/lib/x86_64-linux-gnu/libaio.so"},
            looked_in=("/usr/include", "/usr/lib/x86_64-linux-gnu"),
        ),
        network=f.NetworkFacts({"lo": "up", "ens4": "up"}, (), 29500, port_free=True),
        conda=f.CondaFacts(
            prefix="/home/user/miniconda3",
            version=profile.conda.version,
            shell_hook=True,
            looked_in=("/home/user/miniconda3",),
            packages=_conda_packages(profile),
            hooks=tuple(f.Hook(name, text, executable=True) for name, text in env_hooks.texts(ENV).items()),
        ),
        env=f.EnvFacts(
            path=ENV,
            state="ready",
            kind="conda",
            python=f"{ENV}/bin/python",
            prefix=ENV,
            version="3.9.18",
            extension_suffix=SUFFIX,
            include=f"{ENV}/include/python3.9",
            has_headers=True,
            has_pip=True,
            pip_python=f"{ENV}/bin/python",
            dists=dists,
            torch=f.Torch("2.2.0", "11.8", cxx11_abi=False, folder=f"{SITE}/torch"),
            deepspeed=f.Deepspeed(
                profile.deepspeed.version,
                installed=dict.fromkeys(profile.deepspeed.ops, True),
                compatible=dict.fromkeys(profile.deepspeed.ops, True),
                torch="2.2",
                cuda="11.8",
                libraries=libraries,
            ),
            extensions=extensions,
        ),
        binaries=f.BinariesFacts(
            files={files[0]: f.Binary(("libc10.so",), abi="old") for files in extensions.values()}
            | {f"{ENV}/lib/libstdc++.so.6": f.Binary(provides="3.4.29")},
            libstdcxx=f"{ENV}/lib/libstdc++.so.6",
        ),
        sources=f.SourcesFacts(
            {
                name: f.Checkout(f"{WORKSPACE}/{item.folder}", "ready", item.commit, item.commit)
                for name, item in profile.sources.items()
            }
        ),
        builds=f.BuildsFacts(
            helpers=f.Helpers(
                f"{WORKSPACE}/Megatron-DeepSpeed/megatron/data", (f"helpers{SUFFIX}",), make_suffix=SUFFIX
            ),
            fused_kernels=f.KernelBuild(
                f"{WORKSPACE}/Megatron-DeepSpeed/megatron/fused_kernels/build",
                ("scaled_softmax_cuda.so",),
                stamp={"torch": "2.2.0", "cuda": "11.8", "archs": "70,80,86,87,89", "python": "3.9"},
            ),
            torch_extensions_root="/home/user/.cache/torch_extensions",
        ),
        access=f.AccessFacts(
            f.Login("file", "/home/user/.cache/huggingface/token", "0600"),
            f.Login("file", "/home/user/.netrc", "0600"),
        ),
        data=f.DataFacts(
            recipe=f.Recipe(
                "gpt-0.125b", "megatron-deepspeed", 256, 1, 1, 1, 1, heads=12, layers=12, sequence=2048, memory=8 * GB
            )
        ),
        deep=f.DeepFacts(
            checked=30_000,
            conda_checked=40_000,
            imports=dict.fromkeys(("torch", "transformers", "deepspeed", "apex", "flash_attn"), ""),
            device_code={files[0]: ("sm_80", "sm_86", "sm_89") for files in extensions.values()},
        ),
        smoke=f.SmokeFacts("torch", 2, 7.6, 20.0),
        collected=(*TIMEOUTS_S, *DEEP_TIMEOUTS_S),
    )


def _libraries(ops: tuple[str, ...]) -> list[str]:
    return [f"{name}/{LIBRARIES.get(name, name + '_op')}" for name in ops]


def _conda_packages(profile: Profile) -> dict[str, str]:
    assert profile.conda
    return {name: value if "=" in value.strip("=") else f"{value}=0" for name, value in profile.conda.packages.items()}


def changed(value: Any, path: str, new: Any) -> Any:
    """``value`` with what lies at the dotted ``path`` replaced: attributes of dataclasses, keys of dictionaries.

    A callable ``new`` is given what is there. In keys, ``/`` stands for nothing special and dots are written ``::``.
    """
    name, _dot, rest = path.partition(".")
    name = name.replace("::", ".")
    if isinstance(value, dict):
        old = value.get(name)
    elif isinstance(value, tuple):
        old = value[int(name)]
    else:
        old = getattr(value, name)
    replaced = changed(old, rest, new) if rest else new(old) if callable(new) else new
    if isinstance(value, dict):
        return {**value, name: replaced}
    if isinstance(value, tuple):
        return (*value[: int(name)], replaced, *value[int(name) + 1 :])
    return dataclasses.replace(value, **{name: replaced})
