"""Every text a person sees passes through :func:`_`: English in the source, Japanese in ``locale/ja``.

The catalogue lives here and not in ``bootstrap`` because stage processes see only this package.
"""

from __future__ import annotations

import functools
import gettext
import os
from pathlib import Path

DOMAIN = "ucllm"
LOCALE_DIR = Path(__file__).parent / "locale"


def language() -> str:
    """The two-letter language asked for: ``UCLLM_LANG``, else the POSIX variables in their usual order, else ``en``."""
    for name in ("UCLLM_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(name, "")
        if value:
            return value[:2].lower()
    return "en"


@functools.lru_cache(maxsize=4)
def _catalogue(code: str) -> gettext.NullTranslations:
    return gettext.translation(DOMAIN, LOCALE_DIR, languages=[code], fallback=True)


def _(message: str) -> str:
    """``message`` in the user's language; fill placeholders afterwards, with ``.format(name=...)``."""
    # An empty msgid is the catalogue's own header.
    return _catalogue(language()).gettext(message) if message else ""


def N_(message: str) -> str:  # noqa: N802  the name gettext tools know
    """Mark a constant for translation; translate it with :func:`_` where it is shown."""
    return message
