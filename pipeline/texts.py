"""The user's texts: plain text or JSONL, plain or ``.gz``, strictly UTF-8, one document at a time.

What is wrong with them is gathered in :class:`Faults`, so that a person learns all of it at once, with file and line.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.events import Reporter
    from pipeline.stages import Sources

#: Names that mean one JSON object a line; any other name means plain text.
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
#: More problems than this are not looked for.
MOST_PROBLEMS = 10
BOM = "\ufeff"

Record = TypeVar("Record")


def is_jsonl(path: Path) -> bool:
    """Whether the file's name, apart from ``.gz``, says JSONL."""
    name = path.name.lower()
    return (name[:-3] if name.endswith(".gz") else name).endswith(JSONL_SUFFIXES)


def chosen(config: Config, sources: Sources) -> list[Path]:
    """The text files of a run: those on the command line, else ``data.input``, else the recipe's dataset.

    The paths are absolute, because the stage's process has another current folder. Raises :class:`UcllmError` when
    there are none.
    """
    named = sources.inputs or tuple(config.data.input)
    if named:
        return [Path(name).expanduser().absolute() for name in named]
    if sources.dataset is not None:
        return [sources.dataset.absolute()]
    raise UcllmError(
        "data.missing",
        _("There is no text to read."),
        _("The recipe names neither a dataset nor files."),
        _("Use `--input FILE`, or `--set data.input=FILE`."),
    )


def reading_rules(config: Config, paths: Sequence[Path]) -> dict[str, Any]:
    """The settings of :class:`~pipeline.config.CorpusConfig` that decide what is read from ``paths``, no others."""
    jsonl = any(is_jsonl(path) for path in paths)
    return {"json_key": config.corpus.json_key, "on_bad_line": config.corpus.on_bad_line} if jsonl else {}


def excerpt_rules(config: Config, paths: Sequence[Path]) -> dict[str, Any]:
    """``start_after`` and ``end_before``, where they are set and a plain text is there for them."""
    rules = {"start_after": config.corpus.start_after, "end_before": config.corpus.end_before}
    plain = not all(is_jsonl(path) for path in paths)
    return {name: value for name, value in rules.items() if value and plain}


def open_texts(paths: Sequence[Path], rules: Mapping[str, Any]) -> Texts:
    """The texts that ``rules`` (of :func:`reading_rules` and :func:`excerpt_rules`) describe."""
    return Texts(
        paths,
        json_key=rules.get("json_key", "text"),
        skip_bad_lines=rules.get("on_bad_line") == "skip",
        start_after=rules.get("start_after", ""),
        end_before=rules.get("end_before", ""),
    )


class Faults:
    """What is wrong with the user's texts. A bad JSON line is an error, or, with ``skip``, only counted."""

    def __init__(self, *, skip: bool = False) -> None:
        """Begin with no faults."""
        self.skip = skip
        #: Lines left out because of ``skip``.
        self.bad_lines = 0
        self.problems: list[Problem] = []
        self._first = ""

    def bad_line(self, path: Path, number: int, why: str) -> None:
        """Line ``number`` (from 1) of a JSONL file is of no use. Raises :class:`UcllmError` after too many."""
        where = _("Line {number} of {path} cannot be used.").format(number=number, path=path)
        if self.skip:
            self.bad_lines += 1
            self._first = self._first or f"{where} {why}"
            return
        hint = _("Mend the line, or leave such lines out with `--set corpus.on_bad_line=skip`.")
        self.add(Problem("data.bad-line", where, why, hint))

    def add(self, problem: Problem) -> None:
        """Something that ``skip`` does not excuse. Raises :class:`UcllmError` with all of them after too many."""
        self.problems.append(problem)
        if len(self.problems) == MOST_PROBLEMS:
            stopped = _("There may be more: the reading stopped after {count} problems.").format(count=MOST_PROBLEMS)
            raise UcllmError.of([*self.problems, Problem("data.more", stopped)])

    def raise_if_any(self) -> None:
        """Raise :class:`UcllmError` with everything that was found, if anything was."""
        if self.problems:
            raise UcllmError.of(self.problems)

    def note(self) -> str:
        """One line about the lines that were left out; empty when there are none."""
        if not self.bad_lines:
            return ""
        return _("{count} bad lines were left out (corpus.on_bad_line=skip). The first: {first}").format(
            count=self.bad_lines, first=self._first
        )


class Texts:
    """The text files of a run, in the order given. Holds one line (or document) at a time, whatever their size."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        json_key: str = "text",
        skip_bad_lines: bool = False,
        start_after: str = "",
        end_before: str = "",
    ) -> None:
        """Look at the files without opening them. Raises :class:`UcllmError` naming each that is not there."""
        self.paths = list(paths)
        self.json_key = json_key
        self.start_after = start_after
        self.end_before = end_before
        self.faults = Faults(skip=skip_bad_lines)
        #: Bytes of all files, as they lie on the disk, and how many of them were read.
        self.total = self.position = 0
        for path in self.paths:
            try:
                self.total += path.stat().st_size
            except OSError as error:
                self.faults.add(_unreadable(path, error))
        self.faults.raise_if_any()

    def progress(self, report: Reporter, **metrics: float) -> None:
        """Tell how far the reading is, but not its end: a compressed file is read long before its lines are used."""
        if self.position < self.total:
            report.progress(self.position, self.total, "B", **metrics)

    def lines(self) -> Iterator[str]:
        """Every line of plain text just as it is in the file, and every line of the JSON texts, without the newline.

        A carriage return stays: SentencePiece learns from it (as a space) when it reads a file itself.
        """
        for path in self.paths:
            if is_jsonl(path):
                for text in self._json_texts(path):
                    yield from text.split("\n")
            else:
                for line in self._decoded(path):
                    yield line.rstrip("\n")

    def documents(self, lines_per_document: int) -> Iterator[str]:
        """Every document: a JSON line's text, or so many lines of a plain text that are not blank (0: the whole file).

        Lines lose their line end, nothing else; a document never spans two files. Of a plain text only the part between
        ``start_after`` and ``end_before`` counts.
        """
        for path in self.paths:
            if is_jsonl(path):
                yield from self._json_texts(path)
                continue
            collected: list[str] = []
            for bare in self._excerpt(path):
                if not bare.strip():
                    continue
                collected.append(bare)
                if len(collected) == lines_per_document:
                    yield "\n".join(collected)
                    collected = []
            if collected:
                yield "\n".join(collected)

    def _excerpt(self, path: Path) -> Iterator[str]:
        """The lines of a plain text between the two marks, without line ends. A mark that is not there is a fault."""
        begun, ended = not self.start_after, not self.end_before
        for number, line in enumerate(self._decoded(path)):
            bare = (line.removeprefix(BOM) if number == 0 else line).rstrip("\r\n")
            if not begun:
                begun = bare.startswith(self.start_after)
            elif self.end_before and (ended or bare.startswith(self.end_before)):
                ended = True  # read on: the rest must be UTF-8 too, and progress counts it
            else:
                yield bare
        for found, name, mark in (
            (begun, "corpus.start_after", self.start_after),
            (ended, "corpus.end_before", self.end_before),
        ):
            if not found and not self.faults.problems:
                what = _("{path} has no line that begins with `{mark}`.").format(path=path, mark=mark)
                hint = _("Correct it or switch it off: `--set {name}=`.").format(name=name)
                self.faults.add(Problem("data.no-mark", what, hint=hint))

    def _json_texts(self, path: Path) -> Iterator[str]:
        return records(path, lambda record: _text_of(record, self.json_key), self.faults, self._advance)

    def _decoded(self, path: Path) -> Iterator[str]:
        for number, line in _raw_lines(path, self.faults, self._advance):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                # Not for `skip`: a text in another encoding would lose most of its lines without a word.
                self.faults.add(_not_utf8(path, number, line, error))
                return

    def _advance(self, count: int) -> None:
        self.position += count


def records(
    path: Path,
    parse: Callable[[Mapping[str, Any]], Record],
    faults: Faults,
    advance: Callable[[int], None] = lambda _count: None,
) -> Iterator[Record]:
    """``parse(object)`` of each line of a JSONL file; blank lines are passed over.

    ``parse`` raises ``ValueError`` with a sentence for the user when it cannot use the object. Lines that are not
    UTF-8, not JSON or not an object, and lines that ``parse`` refuses, go to ``faults``, and the reading goes on.
    ``advance`` hears how many more bytes of the file were read.
    """
    for number, line in _raw_lines(path, faults, advance):
        if not line.strip():
            continue
        try:
            record = parse(_object(path, number, line))
        except ValueError as error:
            faults.bad_line(path, number, str(error))
        else:
            yield record


def _object(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        text = line.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(path, number, line, error).why) from error
    try:
        # A JSON file may begin with a byte order mark, which JSON itself does not know.
        value = json.loads(text.removeprefix(BOM) if number == 1 else text)
    except json.JSONDecodeError as error:
        raise ValueError(_("It is not JSON: {why}.").format(why=f"{error.msg}, column {error.colno}")) from error
    except RecursionError as error:
        raise ValueError(_("It is not JSON: {why}.").format(why="nested too deeply")) from error
    if not isinstance(value, dict):
        raise ValueError(
            _("It is {kind}, not an object like {example}.").format(kind=_kind(value), example='{"text": "…"}')
        )
    return value


def _text_of(record: Mapping[str, Any], key: str) -> str:
    if key not in record:
        present = ", ".join(f"`{name}`" for name in list(record)[:6]) or _("none")
        raise ValueError(
            _("It has no key `{key}` (it has: {present}); `--set corpus.json_key=KEY` names another.").format(
                key=key, present=present
            )
        )
    text = record[key]
    if not isinstance(text, str):
        raise ValueError(_("Its `{key}` is {kind}, not a text.").format(key=key, kind=_kind(text)))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can write half of a surrogate pair; no UTF-8 text can hold it.
        raise ValueError(_("Its `{key}` holds half of a surrogate pair.").format(key=key)) from error
    return text


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    number = _("a number")
    names = {bool: _("true or false"), int: number, float: number, str: _("a text"), list: _("a list")}
    return names.get(type(value), _("an object"))


def _raw_lines(path: Path, faults: Faults, advance: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line, split at ``\\n`` alone. ``advance`` hears how far the file was read."""
    try:
        with path.open("rb") as file:
            stream = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if path.suffix.lower() == ".gz" else file
            position = 0
            for number, line in enumerate(stream, 1):
                here = file.tell()
                advance(here - position)
                position = here
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = _("{path} is not a whole gzip file.").format(path=path)
        hint = _("Fetch it again, or give it a name without `.gz` if it is not compressed.")
        faults.add(Problem("data.not-gzip", what, str(error), hint))
    except OSError as error:
        faults.add(_unreadable(path, error))


def _unreadable(path: Path, error: OSError) -> Problem:
    return Problem("data.unreadable", _("Cannot read {path}.").format(path=path), str(error.strerror or error))


def _not_utf8(path: Path, number: int, line: bytes, error: UnicodeDecodeError) -> Problem:
    what = _("{path} is not UTF-8: line {number}, byte {byte}.").format(path=path, number=number, byte=error.start + 1)
    name = _likely_encoding(line)
    why = _("The byte is 0x{byte:02x}.").format(byte=line[error.start])
    if name:
        why = _("It may be {encoding}.").format(encoding=name)
    # `zcat -f` passes on what is not compressed.
    command = f"zcat -f {path} | iconv -f {name or 'ENCODING'} -t UTF-8 > NEW_FILE"
    hint = _("Convert it: `{command}`").format(command=command)
    return Problem("data.not-utf8", what, why, hint)


def _likely_encoding(line: bytes) -> str:
    """The encoding that this line of a Japanese or Windows text is probably in; empty when none fits."""
    if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    # EUC-JP first: most EUC-JP is also valid Shift_JIS (as half-width katakana), hardly ever the other way round.
    for codec, name in (("euc_jp", "EUC-JP"), ("cp932", "CP932")):
        try:
            line.decode(codec)
        except UnicodeDecodeError:
            continue
        return name
    return ""
