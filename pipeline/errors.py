"""The one exception a user ever sees: what is wrong, why, and the command that helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.i18n import _


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    ``code`` is stable and English, for scripts; ``what`` is one sentence, ``why`` one more (may be empty),
    ``hint`` the exact command or edit that helps (may be empty). The last three are in the user's language.
    """

    code: str
    what: str
    why: str = ""
    hint: str = ""

    @property
    def message(self) -> str:
        """``what`` and ``why`` as one line."""
        # Japanese puts no space between sentences.
        return f"{self.what}{'' if self.what.endswith('。') else ' '}{self.why}".strip()


class UcllmError(Exception):
    """A failure to tell the user about, without a traceback. Holds every problem found, not only the first."""

    def __init__(self, code: str, what: str, why: str = "", hint: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(code, what, why, hint),)
        super().__init__(self.problems[0].message)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> UcllmError:
        """One error that lists all of ``problems`` (at least one)."""
        first = problems[0]
        error = cls(first.code, first.what, first.why, first.hint)
        error.problems = tuple(problems)
        return error


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A hint naming the nearest of ``known``, or all of them when nothing is near."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return _("Did you mean `{name}`?").format(name=near[0])
    return _("Known: {names}").format(names=", ".join(known))
