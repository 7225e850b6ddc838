"""Every text a user sees is translated into Japanese, with the same placeholders, and compiled."""

from __future__ import annotations

import functools
import gettext
import re
import string
from pathlib import Path

import pytest

from pipeline import i18n
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "pipeline" / "locale" / "ja" / "LC_MESSAGES"


@functools.lru_cache(maxsize=1)
def messages() -> dict[str, str]:
    """Every msgid in the source, and where it is: what `make catalogue` extracts."""
    extract = pytest.importorskip("babel.messages.extract")
    keywords = {**extract.DEFAULT_KEYWORDS, "N_": None}
    found = {}
    for package in ("bootstrap", "pipeline"):
        for file, line, message, *_rest in extract.extract_from_dir(str(REPOSITORY / package), keywords=keywords):
            found[message[0] if isinstance(message, tuple) else message] = f"{package}/{file}:{line}"
    return found


def _translations() -> dict[str, str]:
    pofile = pytest.importorskip("babel.messages.pofile")
    with (FOLDER / "ucllm.po").open("rb") as stream:
        catalogue = pofile.read_po(stream)
    # Of a text that click counts with (a pair in English) the singular stands for both.
    return {
        str(item.id[0] if item.pluralizable else item.id): str(item.string[0] if item.pluralizable else item.string)
        for item in catalogue
        if item.id and not item.fuzzy
    }


def _fields(text: str) -> list[str]:
    """The placeholders, with their formats; raises ValueError for a lone brace."""
    return sorted(
        f"{name}:{spec}" for _text, name, spec, _conversion in string.Formatter().parse(text) if name is not None
    )


def test_there_is_something_to_translate() -> None:
    """Guards the tests below: an extraction that finds nothing would pass them all."""
    found = messages()
    assert len(found) > 100
    assert "Interrupted." in found
    assert "Make the environment: everything Step 0 does, resumable and verified." in found, "N_ is not extracted"


def test_every_text_is_translated() -> None:
    translations = _translations()
    missing = [f"{where}: {text}" for text, where in messages().items() if not translations.get(text)]
    assert missing == [], "run `make catalogue` and translate these"


def test_translations_have_the_same_placeholders() -> None:
    wrong = [
        text for text, translated in _translations().items() if translated and _fields(text) != _fields(translated)
    ]
    assert wrong == []


def test_translations_keep_commands_and_options() -> None:
    """What stands between backquotes is typed by the user, so it is the same in every language."""
    wrong = [
        text
        for text, translated in _translations().items()
        if translated and sorted(re.findall(r"`[^`]*`", text)) != sorted(re.findall(r"`[^`]*`", translated))
    ]
    assert wrong == []


def test_nothing_is_translated_that_nobody_says() -> None:
    assert sorted(set(_translations()) - set(messages())) == []


def test_the_compiled_catalogue_is_in_step() -> None:
    with (FOLDER / "ucllm.mo").open("rb") as stream:
        compiled = gettext.GNUTranslations(stream)
    behind = [
        text
        for text, translated in _translations().items()
        if translated not in (compiled.gettext(text), compiled.ngettext(text, "", 1))
    ]
    assert behind == [], "run `make catalogue`"


def test_no_text_is_filled_before_it_is_translated() -> None:
    """`_(f"...")` can never be found in a catalogue."""
    bad = []
    for package in ("bootstrap", "pipeline"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if re.search(r"""(?<![\w.])N?_\(\s*f["']""", line):
                    bad.append(f"{path.relative_to(REPOSITORY)}:{number}")
    assert bad == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": "C.UTF-8"}, "c."),
        ({"LANG": "en_US.UTF-8", "UCLLM_LANG": "ja"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "UCLLM_LANG": ""}, "ja"),
    ],
)
def test_the_language_asked_for(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("UCLLM_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert i18n.language() == expected
    # A language without a catalogue is English, and so is an empty text in every language.
    monkeypatch.setattr(i18n, "LOCALE_DIR", tmp_path)
    i18n._catalogue.cache_clear()
    assert i18n._("Interrupted.") == "Interrupted."
    assert i18n._("") == ""
    i18n._catalogue.cache_clear()
