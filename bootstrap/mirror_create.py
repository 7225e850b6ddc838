"""Making and checking a mirror: everything that a profile fetches, in one folder, with an index of it.

Every file arrives under another name, is compared with its hash and then renamed; the index comes last. So the same
command continues after a kill, adds to a folder that is there, and puts several profiles into one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import html
import json
import re
import shutil
import threading
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bootstrap import datasets, host, mirror, wheels
from bootstrap.facts import sources as reader
from bootstrap.mirror import Entry, Index
from bootstrap.mirror_packages import Collector, locks_of, require_same, sdist_locks_of
from bootstrap.profiles import Profile, Source
from bootstrap.workspace import Workspace
from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _
from pipeline.recipe import datasets as catalogue
from pipeline.recipe import resolve
from pipeline.runs import sha256_file, write_text_atomically

#: Files fetched, and pips and gits run, at the same time.
WORKERS = 4
#: Ours, beside what the index names.
LOCK, WORK = ".lock", ".work"

Say = Callable[[str], None]
Job = Callable[[], list[Entry]]


def create(folder: Path, profile: Profile, pythons: Sequence[str], target_gpu: str, say: Say) -> Index:
    """Collect what ``profile`` fetches for these Pythons into ``folder``, beside what it has; the new index.

    ``target_gpu`` (``sm_89``, or empty) is what wheels that were compiled are for. Raises :class:`UcllmError` with
    all that could not be had, after everything else was fetched.
    """
    if profile.ranges:
        what = _("Profile {profile} cannot be mirrored.").format(profile=profile.name)
        why = _("What it installs depends on the Python that it adopts, and is in no lock.")
        raise UcllmError("mirror.no-lock", what, why, _("Use a profile that installs its own Python packages."))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(folder, say):
            known = _known(folder)
            maker = _Maker(folder, profile, known, say)
            made = _together(maker.jobs(pythons, target_gpu))
            files = {**known.files, **{entry.path: entry for entry in made}}
            for page in (*maker.repodata(), maker.page(files)):
                files[page.path] = page
            told = {"pythons": list(pythons), "target_gpu": target_gpu}
            index = Index(files, {**known.profiles, profile.name: told})
            _write(folder, index)
            shutil.rmtree(folder / WORK)
    except OSError as error:
        raise UcllmError(
            "mirror.not-writable",
            _("Cannot write {path}.").format(path=error.filename or folder),
            str(error.strerror or error),
            _("Make room or name another folder, then run the same command again; it continues where it stopped."),
        ) from error
    return index


@contextlib.contextmanager
def _only_one(folder: Path, say: Say) -> Iterator[None]:
    """Hold the folder against a second process that adds to it; it waits."""
    with (folder / LOCK).open("wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(_("Waiting for another process that adds to this mirror."))
            fcntl.flock(stream, fcntl.LOCK_EX)
        (folder / WORK).mkdir(exist_ok=True)
        with host.kept_open(stream.fileno()):
            yield


def _known(folder: Path) -> Index:
    """What the folder has already. Raises :class:`UcllmError` for a folder of something else."""
    try:
        return mirror.parse((folder / mirror.INDEX).read_bytes())
    except FileNotFoundError:
        return Index()
    except ValueError as error:
        raise UcllmError(
            "mirror.unreadable",
            _("{path} cannot be read.").format(path=folder / mirror.INDEX),
            str(error),
            _("Name another folder, or move this file away and run the same command again."),
        ) from error


def _write(folder: Path, index: Index) -> None:
    data = {
        "mirror_version": mirror.VERSION,
        "profiles": index.profiles,
        "files": [dataclasses.asdict(index.files[path]) for path in sorted(index.files)],
    }
    write_text_atomically(folder / mirror.INDEX, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _together(jobs: Sequence[Job]) -> list[Entry]:
    """Do the jobs side by side. Daemons: an interrupted tool ends at once, and takes its children with it."""
    waiting, made, failures = deque(jobs), list[Entry](), list[BaseException]()

    def work() -> None:
        while waiting:
            try:
                made.extend(waiting.popleft()())
            except IndexError:  # another was faster
                return
            except BaseException as error:  # noqa: BLE001  it is raised below
                failures.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _number in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        if not isinstance(failure, UcllmError):
            raise failure
    problems = [problem for failure in failures if isinstance(failure, UcllmError) for problem in failure.problems]
    if problems:
        raise UcllmError.of(problems)
    return made


@dataclass
class _Maker:
    folder: Path
    profile: Profile
    known: Index
    say: Say

    @property
    def work(self) -> Workspace:
        """A workspace of our own, for what must be resolved or cloned on the way; it is thrown away."""
        return Workspace(self.folder / WORK)

    def jobs(self, pythons: Sequence[str], target_gpu: str) -> list[Job]:
        """Everything to be fetched."""
        profile, found = self.profile, list[Job]()
        if profile.conda is not None:
            conda = profile.conda
            name = conda.installer.rpartition("/")[2]
            path = f"installer/{name}"
            found.append(functools.partial(self._file, "installer", name, path, conda.sha256, conda.installer))
            try:
                found += self._conda()
            except UcllmError as error:  # all else is fetched first
                found.append(functools.partial(_fail, error))
        collector = Collector(self.folder, self.folder / WORK, profile, self.known, self.say)
        found += [functools.partial(collector.wheels, lock, python) for lock in locks_of(profile) for python in pythons]
        if profile.torch is not None:
            found += [functools.partial(collector.torch, python) for python in pythons]
        found += [functools.partial(self._sdist, lock) for lock in sdist_locks_of(profile)]
        found += [functools.partial(self._git, source) for source in profile.sources.values()]
        recipe = resolve(self.profile.recipe)
        named = {recipe.data.dataset, recipe.finetune.data}
        for name, entry in catalogue().items():
            if "sdist" in entry:
                found.append(functools.partial(self._dataset, name))
            elif name in named:
                found.append(functools.partial(self._file_of_dataset, name))
        return [*found, functools.partial(self._built, pythons, target_gpu)]

    def _file(self, kind: str, name: str, path: str, sha256: str, url: str) -> list[Entry]:
        """Fetch a file whose sha256 is known, unless it is there."""
        target = self.folder / path
        require_same(self.folder, self.known, path, sha256)
        if not (target.is_file() and sha256_file(target) == sha256):
            self.say(_("fetching {name}").format(name=name))
            target.unlink(missing_ok=True)
            host.fetch(url, target, sha256)
        return [Entry(kind, name, path, sha256, target.stat().st_size, host.without_logins(url))]

    def _sdist(self, lock: Path) -> list[Entry]:
        """A source distribution. pip would run its code to learn what it needs: it is fetched without pip."""
        import sys

        entries = []
        for project, hashes in Collector.sdists(lock):
            kept = next((path for path in (self.folder / mirror.WHEELS).glob("*") if sha256_file(path) in hashes), None)
            if kept is not None and (entry := self.known.files.get(f"{mirror.WHEELS}/{kept.name}")):
                entries.append(entry)
                continue
            name, url = datasets.find(project, sys.executable, sha256=hashes[0])
            entries += self._file("sdist", name, f"{mirror.WHEELS}/{name}", hashes[0], url)
        return entries

    def _dataset(self, name: str) -> list[Entry]:
        """The source distribution that a recipe's text is part of."""
        import sys

        entry = {key: str(value) for key, value in catalogue()[name].items()}
        path, sha256 = f"datasets/{entry['sdist_file']}", entry["sdist_sha256"]
        there = self.known.files.get(path)
        if there is not None and (self.folder / path).is_file() and sha256_file(self.folder / path) == sha256:
            return [there]
        url = datasets.find(entry["sdist"], sys.executable, entry["sdist_file"])[1]
        return self._file("dataset", name, path, sha256, url)

    def _file_of_dataset(self, name: str) -> list[Entry]:
        """A recipe's text that is one file elsewhere. It can be as much as gone: then the mirror is made without it."""
        entry = {key: str(value) for key, value in catalogue()[name].items()}
        path = mirror.dataset_path(entry["file"])
        there, target = self.known.files.get(path), self.folder / path
        if there is not None and target.is_file() and sha256_file(target) == there.sha256:
            return [there]
        try:
            url, sha256 = datasets.address(name, entry, target)
            self.say(_("fetching {name}").format(name=entry["file"]))
            host.fetch(url, target, sha256)
        except UcllmError as error:
            self.say(_("dataset {name} is left out: {why}").format(name=name, why=error.problems[0].message))
            return []
        size = target.stat().st_size
        return [Entry("dataset", entry["file"], path, sha256_file(target), size, host.without_logins(url))]

    def _git(self, source: Source) -> list[Entry]:
        """The pinned commit with all before it, and its tag where that names it, as a git bundle."""
        path = mirror.bundle_path(source)
        target, there = self.folder / path, self.known.files.get(path)
        if there is not None and target.is_file() and sha256_file(target) == there.sha256:
            return [there]
        self.say(_("cloning {url}").format(url=host.without_logins(source.url)))
        bare = self.folder / WORK / f"{source.folder}.git"
        shutil.rmtree(bare, ignore_errors=True)  # of a clone that was killed
        log = self.folder / WORK / f"{source.folder}.txt"
        reading = reader.environment(bare)

        def run(*args: str) -> None:
            host.run_logged(reader.git(*args), log=log, env=reading)

        def commit_of(ref: str) -> str:
            argv = reader.git("-C", str(bare), "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
            return host.capture(argv, timeout_s=reader.TIMEOUT_S, env=reading).stdout.strip()

        run("clone", "--bare", source.url, str(bare))
        if commit_of(source.commit) != source.commit:
            what = _("{url} has no commit {commit}.").format(url=host.without_logins(source.url), commit=source.commit)
            raise UcllmError("source.no-commit", what, hint=_("Look at the profile's `[sources]`."))
        run("-C", str(bare), "update-ref", "refs/heads/ucllm", source.commit)
        # The commit decides: a tag that was moved since stays out.
        tag = f"refs/tags/{source.tag}"
        tags = [tag] if source.tag and commit_of(tag) == source.commit else []
        target.parent.mkdir(exist_ok=True)
        part = self.folder / WORK / target.name
        run("-C", str(bare), "bundle", "create", str(part), "refs/heads/ucllm", *tags)
        part.replace(target)
        shutil.rmtree(bare)
        return [self._made("git", source.folder, path, source.url)]

    def _built(self, pythons: Sequence[str], target_gpu: str) -> list[Entry]:
        """Wheels compiled on this machine for this GPU, or for none."""
        capability = capability_of(target_gpu)
        entries = []
        for folder in sorted(wheels.caches(self.folder)[0].glob("*")):
            told = wheels.record(folder).get("inputs")
            inputs = told if isinstance(told, dict) else {}
            fits = inputs.get("Python") in pythons and inputs.get("GPU", "") in ("", capability)
            # A part is being written by another process.
            wheel = wheels.whole(folder) if fits and folder.suffix != ".part" else None
            if wheel is None:
                continue
            for source in (folder / "build.json", wheel):
                path = f"built/{folder.name}/{source.name}"
                target = self.folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f"{target.name}.part")
                shutil.copyfile(source, part)
                part.replace(target)
                entries.append(self._made("built", folder.name, path))
        return entries

    def _conda(self) -> list[Job]:
        """The packages that the profile's conda packages come to, and what they come to."""
        from bootstrap import conda

        inputs = conda.inputs(self.profile)
        if not (self.profile.conda and self.profile.conda.packages):
            return []
        kept, work = self.folder / mirror.solution_path(inputs), conda.solution_file(self.work)
        if kept.is_file():  # what it came to when the mirror was made, not what it would come to today
            work.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept, work)
        self.say(_("resolving the conda packages"))
        solution = conda.resolve(self.profile, self.work, self.say)

        def keep() -> list[Entry]:
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(work, part := kept.with_name(f"{kept.name}.part"))
            part.replace(kept)
            return [self._made("solution", self.profile.name, mirror.solution_path(inputs))]

        return [
            keep,
            *(
                functools.partial(self._file, "conda", item.file, _channel_path(item.url), item.sha256, item.url)
                for item in solution.packages
            ),
        ]

    def repodata(self) -> list[Entry]:
        """For each channel what the mirror has of it, so that conda itself can install from there too."""
        channels: dict[PurePosixPath, dict[str, dict[str, object]]] = {}
        for solution in sorted((self.folder / "conda").glob("solution-*.json")):
            for item in json.loads(solution.read_text(encoding="utf-8"))["packages"]:
                path = PurePosixPath(_channel_path(item["url"]))
                record = {key: value for key, value in item.items() if key not in ("url", "channel", "fn")}
                channels.setdefault(path.parent, {})[path.name] = record
                channels.setdefault(path.parent.with_name("noarch"), {})
        entries = []
        for subdir, records in channels.items():
            data = {
                "info": {"subdir": subdir.name},
                "packages": {name: item for name, item in records.items() if name.endswith(".tar.bz2")},
                "packages.conda": {name: item for name, item in records.items() if name.endswith(".conda")},
            }
            file = f"{subdir}/repodata.json"
            write_text_atomically(self.folder / file, json.dumps(data, indent=1, sort_keys=True) + "\n")
            entries.append(self._made("repodata", str(subdir.parent), file))
        return entries

    def page(self, files: dict[str, Entry]) -> Entry:
        """The page by which pip finds the wheels and source distributions over http."""
        lines = ["<!DOCTYPE html>", "<title>ucllm mirror</title>"]
        for path, entry in sorted(files.items()):
            if entry.kind in ("wheel", "sdist"):
                name = PurePosixPath(path).name
                lines.append(f'<a href="{urllib.parse.quote(name)}#sha256={entry.sha256}">{html.escape(name)}</a><br>')
        (self.folder / mirror.WHEELS).mkdir(exist_ok=True)
        write_text_atomically(self.folder / mirror.PAGE, "\n".join(lines) + "\n")
        return self._made("page", mirror.WHEELS, mirror.PAGE)

    def _made(self, kind: str, name: str, path: str, url: str = "") -> Entry:
        target = self.folder / path
        return Entry(kind, name, path, sha256_file(target), target.stat().st_size, host.without_logins(url))


def _fail(error: UcllmError) -> list[Entry]:
    raise error


def _channel_path(url: str) -> str:
    """Where a conda package lies in the mirror: by its channel, since two may have different ones of one name."""
    parts = urllib.parse.urlsplit(url)
    host_name = parts.netloc.rpartition("@")[2] or parts.scheme
    return f"conda/{host_name}{re.sub(r'^/t/[^/]+', '', urllib.parse.unquote(parts.path))}"  # /t/TOKEN is a login


def capability_of(target_gpu: str) -> str:
    """``sm_89`` as ``8.9``; empty for none. Raises :class:`UcllmError` for what is no such name."""
    match = re.fullmatch(r"sm_(\d+)(\d)", target_gpu)
    if target_gpu and match is None:
        what = _("`{name}` is not a GPU's compute capability as nvcc writes it.").format(name=target_gpu)
        raise UcllmError("usage", what, hint=_("For example `--target-gpu sm_89` for an NVIDIA L4."))
    return f"{match[1]}.{match[2]}" if match else ""


def verify(folder: Path) -> tuple[Index, list[Problem]]:
    """The index of a mirror, and all that is wrong with its files. Raises :class:`UcllmError` without an index."""
    from concurrent.futures import ThreadPoolExecutor

    index = mirror.index(str(folder))
    with ThreadPoolExecutor(WORKERS) as pool:
        wrong = [problem for problem in pool.map(lambda entry: _wrong(folder, entry), index.files.values()) if problem]
    known = {mirror.INDEX, LOCK, *index.files}
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    there = {path.as_posix() for path in files if path.parts[0] != WORK}
    unknown = [
        Problem("mirror.unknown", _("{path}: it is not in the index").format(path=path)) for path in there - known
    ]
    return index, sorted((*wrong, *unknown), key=lambda problem: problem.what)


def _wrong(folder: Path, entry: Entry) -> Problem | None:
    try:
        size = (folder / entry.path).stat().st_size
        actual = sha256_file(folder / entry.path) if size == entry.size else ""
    except OSError as error:
        what = _("{path}: {reason}").format(path=entry.path, reason=error.strerror or error)
        return Problem("mirror.missing" if isinstance(error, FileNotFoundError) else "mirror.unreadable", what)
    if size != entry.size:
        what = _("{path}: it has {size} bytes, not {expected}")
        return Problem("mirror.altered", what.format(path=entry.path, size=size, expected=entry.size))
    if actual != entry.sha256:
        what = _("{path}: its sha256 is {actual}, not {expected}")
        return Problem("mirror.altered", what.format(path=entry.path, actual=actual, expected=entry.sha256))
    return None
