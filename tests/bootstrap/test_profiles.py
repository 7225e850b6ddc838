"""Every profile that comes with ucllm: it loads, its requirements exist and stand in an order that works."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from bootstrap import requirements
from bootstrap.facts import EnvFacts, Facts
from bootstrap.profiles import Profile, load, locks_dir, profile_names, read_lock
from bootstrap.workspace import Workspace

PROFILES = ["abci-2024.02", "cpu", "gcp-2024.02", "host", "megatron-cpu"]
SEED_PROFILES = ["abci-2024.02", "gcp-2024.02", "megatron-cpu"]
LOCKS = sorted(path.relative_to(locks_dir()).as_posix() for path in locks_dir().glob("*/*.lock"))


@pytest.fixture(params=PROFILES)
def profile(request: pytest.FixtureRequest) -> Profile:
    return load(request.param)


def test_these_profiles_are_there() -> None:
    assert profile_names() == PROFILES


def test_every_requirement_has_its_module(profile: Profile) -> None:
    found = requirements.load(profile.requirements)
    assert [item.id for item in found] == list(profile.requirements)


def test_no_requirement_stands_twice_and_each_after_what_it_needs(profile: Profile) -> None:
    order = list(profile.requirements)
    assert len(order) == len(set(order))
    for item in requirements.load(order):
        for needed in set(item.needs) & set(order):
            assert order.index(needed) < order.index(item.id), f"{item.id} stands before {needed}"


def test_where_pip_brings_torch_it_is_looked_for_after_pip_has_been(profile: Profile) -> None:
    """``env.torch`` has no fix of its own: judged before ``env.packages``, a setup from nothing would end as failed."""
    if profile.torch is None or "env.torch" not in profile.requirements:
        pytest.skip("torch is not pip's, or not asked for")
    assert profile.requirements.index("env.packages") < profile.requirements.index("env.torch")


def test_only_what_is_required_can_be_optional(profile: Profile) -> None:
    assert set(profile.optional) <= set(profile.requirements)


def test_the_seeds_profile_has_its_45_checks() -> None:
    assert len(load("gcp-2024.02").requirements) >= 45


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_of_a_lock_is_pinned_and_hashed(lock: str) -> None:
    text = (locks_dir() / lock).read_text(encoding="utf-8")
    blocks = [block for block in re.split(r"\n(?=[a-zA-Z])", "\n" + text) if re.match(r"[a-zA-Z]", block)]
    pins = read_lock(locks_dir() / lock)
    assert len(pins) == len(blocks) > 0
    assert all("--hash=sha256:" in block for block in blocks)
    # Which index serves the packages is the site's to say.
    assert "://" not in text


@pytest.mark.parametrize("name", SEED_PROFILES)
def test_the_seeds_versions_are_locked(name: str) -> None:
    profile = load(name)
    versions = {pin.name: pin.version for pin in profile.pins_for(profile.pythons[0])}
    wanted = {
        "transformers": "4.37.2",
        "tokenizers": "0.15.2",
        "trl": "0.7.10",
        "protobuf": "3.20.3",
        "numpy": "1.26.4",
    }
    assert wanted.items() <= versions.items()
    # Those are built by steps of their own, and this torch is not a pip package or has a lock of its own.
    locked = {pin.name for pin in profile.pins if pin.lock == "requirements.lock"}
    assert not {"deepspeed", "apex", "flash-attn", "torch", "triton"} & locked
    assert not [item for item in locked if item.startswith("nvidia-")]


@pytest.mark.parametrize("name", SEED_PROFILES)
def test_the_locked_versions_are_inside_the_windows_of_the_sources(name: str) -> None:
    from packaging.specifiers import SpecifierSet

    profile = load(name)
    versions = {pin.name: pin.version for pin in profile.pins}
    assert {package for package in profile.windows if package in versions} == set(profile.windows)
    for package, window in profile.windows.items():
        assert versions[package] in SpecifierSet(window.versions), package
        assert window.why


@pytest.mark.parametrize("name", SEED_PROFILES)
def test_sources_are_pinned_to_commits(name: str) -> None:
    sources = load(name).sources
    assert {"megatron", "llm-jp-sft"} <= set(sources)
    assert all(re.fullmatch(r"[0-9a-f]{40}", source.commit) for source in sources.values())


@pytest.mark.parametrize("name", ["abci-2024.02", "gcp-2024.02"])
def test_the_planned_gpu_can_run_what_the_profile_builds(name: str) -> None:
    profile = load(name)
    assert profile.gpu
    assert profile.cuda
    assert profile.torch_build
    assert profile.flash_attention
    assert profile.torch_build.cuda == profile.cuda.version
    assert profile.gpu.capability.replace(".", "") in profile.cuda.architectures
    least = tuple(map(int, profile.flash_attention.min_capability.split(".")))
    assert tuple(map(int, profile.gpu.capability.split("."))) >= least
    # Code for 8.6 runs on 8.9: within a generation, the newer one runs what was compiled for the older.
    assert any(arch[0] == profile.gpu.capability[0] for arch in profile.torch_build.architectures)


def test_every_path_in_the_plan_for_an_empty_machine_is_whole(profile: Profile, tmp_path: Path) -> None:
    """What setup would do before anything is there."""
    workspace = Workspace(tmp_path / "ws")
    facts = dataclasses.replace(Facts(str(workspace.root)), env=EnvFacts(str(workspace.env), "absent"))
    for requirement in requirements.load(profile.requirements):
        for action in requirement.plan(profile, facts, workspace) if requirement.plan else []:
            words = [word for command in action.commands for word in command.split()]
            assert not [word for word in words if word in (".", "..") or word.startswith("./")], action
