"""Making a mirror and checking it: what is collected, for whom, and how it goes on after a failure."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from bootstrap import mirror, wheels
from bootstrap.workspace import Workspace
from tests.bootstrap import conda_channel
from tests.bootstrap.conda_workspace import write as write_conda
from tests.bootstrap.mirrored import BOOK, KERNELS, NOTHING_ELSE, ONLY, OWN, Mirrored, append, healthy, published
from tests.bootstrap.server import Faulty, serving
from tests.bootstrap.test_sources import git
from tests.bootstrap.wheels import build, pin


def test_what_is_collected(made: Mirrored) -> None:
    index = made.index
    assert sorted(index) == [
        f"datasets/{BOOK}",
        f"git/apex-{made.commit[:12]}.bundle",
        "wheels/alpha-1.0-py3-none-any.whl",
        "wheels/beta-2.0-py3-none-any.whl",
        "wheels/index.html",
        f"wheels/{KERNELS}",
        "wheels/torch-9.9+cpu-py3-none-any.whl",
    ]
    for path, entry in index.items():
        body = (made.folder / path).read_bytes()
        assert (entry["sha256"], entry["size"]) == (hashlib.sha256(body).hexdigest(), len(body))
    assert index["wheels/alpha-1.0-py3-none-any.whl"] == {
        **index["wheels/alpha-1.0-py3-none-any.whl"],
        "kind": "wheel",
        "name": "alpha-1.0-py3-none-any.whl",
        "url": "",  # pip found it in a folder
    }
    assert index[f"wheels/{KERNELS}"]["url"] == f"{made.server.url}/files/{KERNELS}"
    assert {path.name for path in made.folder.iterdir()} == {".lock", "datasets", "git", "index.json", "wheels"}
    checked = made.mirror("verify")
    assert (checked.code, checked.json["data"]["files"]) == (0, 7)


def test_create_says_all_that_it_cannot_get_and_goes_on_later(origin: Mirrored) -> None:
    origin.origin.rename(origin.root / "away")
    page = origin.server.files.pop("/simple/thing/")
    outcome = origin.create()
    assert (outcome.code, outcome.json["command"]) == (1, "mirror create")
    assert sorted(item["code"] for item in outcome.json["errors"]) == ["command.failed", "fetch.failed"]
    assert not (origin.folder / "index.json").exists()
    stamp = (origin.folder / "wheels" / "alpha-1.0-py3-none-any.whl").stat().st_mtime_ns
    (origin.root / "away").rename(origin.origin)
    origin.server.files["/simple/thing/"] = page
    shutil.rmtree(origin.root / "wheels")  # what was fetched is not asked for again
    outcome = origin.create()
    assert outcome.code == 0, outcome.out
    assert (origin.folder / "wheels" / "alpha-1.0-py3-none-any.whl").stat().st_mtime_ns == stamp
    assert origin.mirror("verify").code == 0
    before = (origin.folder / "index.json").read_bytes()
    seen = len(origin.server.seen)
    assert origin.create().code == 0
    assert (origin.folder / "index.json").read_bytes() == before
    assert len(origin.server.seen) == seen, "nothing is asked for what is there"


def test_leftovers_of_a_killed_create_are_in_nobodys_way(origin: Mirrored) -> None:
    stage = origin.folder / ".work" / f"requirements.lock-{OWN}-0" / "wheels"
    stage.mkdir(parents=True)
    (stage / "beta-2.0-py3-none-any.whl").write_bytes(b"half")
    (stage / "zeta-1.0-py3-none-any.whl").write_bytes(b"of a lock that was changed since")
    (origin.folder / ".work" / "apex.git").mkdir()
    (origin.folder / "datasets").mkdir()
    (origin.folder / "datasets" / f"{BOOK}.part").write_bytes(origin.sdists[BOOK][:40])
    outcome = origin.create()
    assert outcome.code == 0, outcome.out
    assert ("/files/" + BOOK, "bytes=40-") in origin.server.seen
    assert not [*origin.folder.rglob("zeta*")]
    assert origin.mirror("verify").code == 0


def test_two_profiles_in_one_folder(made: Mirrored) -> None:
    before = made.index
    outcome = made.create("--target-gpu", "sm_80", profile="other")
    assert outcome.code == 0, outcome.out
    assert set(made.index) - set(before) == {"wheels/alpha-1.1-py3-none-any.whl"}
    data = json.loads((made.folder / "index.json").read_text(encoding="utf-8"))
    assert data["profiles"] == {
        "tiny": {"pythons": [OWN], "target_gpu": ""},
        "other": {"pythons": [OWN], "target_gpu": "sm_80"},
    }
    made.alone()
    healthy(made, made.setup("--mirror", str(made.folder)))


def test_another_file_of_the_same_name_is_refused(made: Mirrored) -> None:
    beta = build(made.root / "wheels", "beta", "2.0", text="another")
    (made.root / "locks" / "other" / "requirements.lock").write_text(pin(beta), encoding="utf-8")
    outcome = made.create(profile="other")
    assert (outcome.code, outcome.json["errors"][0]["code"]) == (1, "mirror.conflict")
    assert made.mirror("verify").code == 0


def test_wheels_for_pythons_that_are_not_here(origin: Mirrored) -> None:
    """Markers and tags are those of the Python asked for, not of the one that runs ucllm."""
    wheels = {}
    for tag in ("cp310", "cp313"):
        made = build(origin.root / "built", "delta", "1.0", text=tag)
        name = f"delta-1.0-{tag}-{tag}-manylinux_2_17_{os.uname().machine}.whl"
        wheels[tag] = made.rename(origin.root / "wheels" / name)
    hashes = [f"    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in wheels.values()]
    old = build(origin.root / "wheels", "epsilon", "1.0")
    with (origin.lock / "requirements.lock").open("a", encoding="utf-8") as stream:
        stream.write("delta==1.0 \\\n" + " \\\n".join(hashes) + "\n" + pin(old, "python_full_version < '3.11'"))
    assert origin.create("--python", "3.10").code == 0
    names = {Path(path).name for path in origin.index}
    assert wheels["cp310"].name in names
    assert wheels["cp313"].name not in names
    assert old.name in names
    assert origin.create("--python", "3.13").code == 0
    assert wheels["cp313"].name in {Path(path).name for path in origin.index}
    assert not any("gamma" in path for path in origin.index)
    refused = origin.create("--python", "3.8", "--python", "2.7")
    assert (refused.code, len(refused.json["errors"])) == (2, 2)


@pytest.mark.slow
def test_without_a_cpu_wheel_of_torch_the_default_is_taken(origin: Mirrored) -> None:
    (origin.root / "wheels" / "torch-9.9+cpu-py3-none-any.whl").unlink()
    outcome = origin.create()
    assert outcome.code == 0, outcome.out
    assert "no CPU wheel can be had" in outcome.err
    assert {"wheels/torch-9.9-py3-none-any.whl", "wheels/cudathing-1.0-py3-none-any.whl"} <= {*origin.index}
    origin.alone()
    healthy(origin, origin.setup("--mirror", str(origin.folder)))


def test_a_tag_that_was_moved_is_left_out_and_a_commit_that_is_gone_is_told(origin: Mirrored) -> None:
    (origin.origin / "code.py").write_text("value = 2\n", encoding="utf-8")
    git("-C", origin.origin, "commit", "-qam", "two")
    git("-C", origin.origin, "tag", "-f", "v1")
    assert origin.create().code == 0
    (bundle,) = origin.folder.glob("git/*.bundle")
    heads = git("bundle", "list-heads", bundle).splitlines()
    assert heads == [f"{origin.commit} refs/heads/ucllm"]
    profile = origin.lock / "profile.toml"
    profile.write_text(profile.read_text("utf-8").replace(origin.commit, "0" * 40), encoding="utf-8")
    outcome = origin.create()
    assert (outcome.code, outcome.json["errors"][0]["code"]) == (1, "source.no-commit")


def test_built_wheels_go_with_the_gpu_they_are_for(origin: Mirrored) -> None:
    cache = origin.root / "cache" / "wheels"
    for name, gpu, python in (("a-1", "8.9", OWN), ("b-2", "8.0", OWN), ("c-3", "", OWN), ("d-4", "8.9", "2.7")):
        wheel = build(cache / name, name[0], "1.0")
        record = {"wheel": wheel.name, "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
        record_text = json.dumps({**record, "inputs": {"GPU": gpu, "Python": python}})
        (cache / name / "build.json").write_text(record_text, encoding="utf-8")
    # What is being written by another process, or was damaged, is passed over.
    shutil.copytree(cache / "c-3", cache / "c-3.x.part")
    shutil.copytree(cache / "c-3", cache / "e-5")
    append(cache / "e-5" / "c-1.0-py3-none-any.whl")
    for name, text in (("f-6", "{"), ("g-7", "[]"), ("h-8.y.part", "{"), ("i-9", '{"inputs": []}')):
        (cache / name).mkdir()
        (cache / name / "build.json").write_text(text, encoding="utf-8")
    (cache / "j-10").mkdir()
    outcome = origin.create("--target-gpu", "sm_89")
    assert outcome.code == 0, outcome.out + outcome.err
    assert origin.create("--target-gpu", "sm_89").code == 0
    assert sorted(path for path in origin.index if path.startswith("built/")) == [
        "built/a-1/a-1.0-py3-none-any.whl",
        "built/a-1/build.json",
        "built/c-3/build.json",
        "built/c-3/c-1.0-py3-none-any.whl",
    ]
    assert origin.mirror("verify").code == 0
    mirror.index.cache_clear()
    workspace, other = Workspace(origin.workspace, str(origin.folder)), origin.root / "other-cache"
    for name in ("a-1", "b-2"):
        wheels.fetch_built(workspace, other / name)
    assert sorted(path.name for path in other.rglob("*")) == ["a-1", "a-1.0-py3-none-any.whl", "build.json"]
    refused = origin.create("--target-gpu", "L4")
    assert (refused.code, "sm_89" in refused.json["errors"][0]["hint"]) == (2, True)


def test_verify_tells_everything_at_once(made: Mirrored) -> None:
    append(made.folder / f"datasets/{BOOK}")
    beta = made.folder / "wheels" / "beta-2.0-py3-none-any.whl"
    beta.write_bytes(beta.read_bytes()[:-1] + b"x")
    (made.folder / "wheels" / "alpha-1.0-py3-none-any.whl").unlink()
    (made.folder / "notes.txt").touch()
    checked = made.mirror("verify")
    assert checked.code == 1
    told = {item["message"].partition(":")[0]: item["code"] for item in checked.json["errors"]}
    assert told == {
        f"datasets/{BOOK}": "mirror.altered",
        "notes.txt": "mirror.unknown",
        "wheels/alpha-1.0-py3-none-any.whl": "mirror.missing",
        "wheels/beta-2.0-py3-none-any.whl": "mirror.altered",
    }
    hints = [item["hint"] for item in checked.json["errors"] if item["hint"]]
    assert len(hints) == 2
    assert f"ucllm mirror create {made.folder} --profile tiny" in " ".join(hints)


def test_a_profile_without_locks_cannot_be_mirrored(origin: Mirrored) -> None:
    text = (origin.lock / "profile.toml").read_text(encoding="utf-8")
    text = text.replace('locks = ["requirements.lock"]', 'requirements = ["alpha>=1"]')
    (origin.lock / "profile.toml").write_text(text, encoding="utf-8")
    outcome = origin.create()
    assert (outcome.code, outcome.json["errors"][0]["code"]) == (1, "mirror.no-lock")


@pytest.mark.slow
def test_a_conda_profile(origin: Mirrored, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Installer, packages and what they came to; conda itself could install from there too."""
    made = origin.root / "made"
    conda_channel.write_channel(made / "channel")
    conda_channel.write_installer(made)
    tiny = write_conda(tmp_path_factory.mktemp("conda"), made)
    profile = str(tiny.root / "profile")
    tiny.patch = origin.patch
    tiny.variables = {"PIP_INDEX_URL": f"{origin.server.url}/simple", "UCLLM_CACHE": str(origin.root / "cache")}
    folder = tiny.root / "mirror"
    outcome = tiny("mirror", "create", str(folder), "--profile", profile, "--json")
    assert outcome.code == 0, outcome.out + outcome.err
    kinds = outcome.json["data"]["kinds"]
    assert kinds == {"conda": 6, "dataset": 1, "installer": 1, "page": 1, "repodata": 2, "solution": 1, "wheel": 2}
    assert tiny("mirror", "verify", str(folder)).code == 0
    (repodata,) = folder.glob(f"conda/**/{conda_channel.SUBDIR}/repodata.json")
    names = json.loads(repodata.read_text(encoding="utf-8"))["packages"]
    assert {path.name for path in repodata.parent.glob("*.tar.bz2")} == {*names}
    before = (folder / "index.json").read_bytes()
    (tiny.root / "channel").rename(tiny.root / "away")
    assert tiny("mirror", "create", str(folder), "--profile", profile, "--json").code == 0, "nothing is resolved again"
    assert (folder / "index.json").read_bytes() == before

    (tiny.root / "standin_miniconda.sh").unlink()
    shutil.rmtree(tiny.root / "wheels")
    tiny.variables |= NOTHING_ELSE
    with serving(Faulty(published(folder))) as server:
        tiny.patch = ONLY.format(port=int(server.url.rpartition(":")[2]))
        done = tiny("setup", "--profile", profile, "--mirror", f"{server.url}/m", "--json")
        assert done.code == 0, done.out + done.err
        assert set(done.statuses.values()) <= {"ok", "skipped", "warn"}
        assert {f"/m/{path}" for path in ("index.json", "wheels/index.html")} <= {path for path, _ in server.seen}
    (meta,) = (tiny.env / "conda-meta").glob("pytorch-2*.json")
    assert json.loads(meta.read_text(encoding="utf-8"))["url"].startswith((tiny.root / "channel").as_uri())
