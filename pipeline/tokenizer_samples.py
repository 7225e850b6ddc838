"""Texts to compare tokenizers with: a fixed list of known difficulties, and random ones."""

from __future__ import annotations

import random

from pipeline.hf_charsmap import decode_rules
from pipeline.hf_tokenizer import SPACE, USER_DEFINED, SpModel

#: Texts that a plain conversion gets wrong in some way: each line is one known difficulty.
HARD_TEXTS = (
    "",
    " ",
    "  ",
    "   ",
    "a",
    " a",
    "  a",
    "a ",
    "a  ",
    "a  b",
    "a     b   c",
    "\t",
    "a\tb",
    "\u3000",
    "\u3000あ\u3000",
    "\n",
    "\n\n",
    "\nfoo",
    "foo\n",
    "a\n b",
    "a \nb",
    "\r",
    "\r\n",
    "a\r\nb",
    "a\r\r\nb",
    "\n\r",
    "\r\u0301\n\u0301",
    "<s>",
    "</s>",
    "<EOD>",
    "<s>a",
    "<s> a",
    " <s>a",
    "a<EOD>",
    "a<EOD>b",
    "a <EOD> b",
    "<EOD>\n<EOD>",
    "<s><s></s>",
    "<<s>>",
    "<s",
    "s>",
    "<s>\u0338",
    "<\u0338s>",
    "\n\u0301",
    "<pad><MASK><CLS><SEP>",
    "<unk>",
    "a<unk>b",
    "<0x41>",
    "<0x0A>",
    "<0xE3><0x81><0x82>",
    "[CLS]",
    "### Human: hi\n### Assistant: ho</s>",
    "<EOD",
    "＜EOD＞",
    "<ＥＯＤ>",
    SPACE,
    f"{SPACE}a",
    f"a{SPACE}{SPACE}b",
    f" {SPACE} ",
    f"{SPACE}\u0301",
    "\u0301",
    "\u0301a",
    " \u0301",
    "\u3099",
    "吾輩は猫である。名前はまだ無い。",
    "カタカナ",
    "ｶﾞｷﾞｸﾞ ﾊﾟﾋﾟ ｱ゙",
    "か\u3099は\u309aわ\u3099",
    "㍿①②㌔㍉",
    "ＡＢＣ１２３！？",
    "〜～−―",
    "e\u0301",
    "e\u0301\u0301",
    "é",
    "Å \u212b A\u030a",
    "①\u0301",
    "ﬁ\u0301",
    "ſ\u0307\u0323",
    "ſ\u0323\u0307",
    "q\u0307\u0323",
    "a\u0323\u0302",
    "a\u0302\u0323",
    "ά\u0345",
    "\u0344",
    "\u0390",
    "ǆ\u030c",
    "\u1e9b\u0323",
    "=\u0338",
    "\u2260",
    "が゛",
    "゛",
    "¨",
    "\u00b4\u0301",
    "각",
    "\u1100\u1161\u11a8",
    "\u1100\u1161",
    "\u1100\u11a8",
    "\u1100\u1100\u1161",
    "가\u11a8",
    "각\u11a8",
    "ㄱㅏㄱ",
    "ﾡￂﾡ",
    "㉠ㅏ",
    "㉮\u11a8",
    "ㅋㅋㅋ 한국어 ㅠㅠ",
    "क्षि",
    "क\u093c",
    "\u0958",
    "น้ำ",
    "\u0e33",
    "\u0f71\u0f80",
    "\u0f73",
    "\u0dd9\u0dca",
    "\U00011935\U00011930",
    "שָׁלוֹם",
    "ﷺ",
    "لا ﻻ",
    "\u0600a",
    "\u0600\u00b2",
    "ا\u0653",
    "👍",
    "👍🏽",
    "👩\u200d👩\u200d👧",
    "🇯🇵🇺🇸",
    "❤\ufe0f",
    "1\ufe0f\u20e3",
    "🏴\U000e0067\U000e007f",
    "\u200b",
    "a\u200bb",
    "\u200d",
    "\u200c",
    "\u200e\u200f",
    "\ufeffa",
    "a\ufeff",
    "\u00ad",
    "\u2028",
    "\u2029",
    "\u0085",
    "\u00a0",
    "\x00",
    "a\x00b",
    "\x00\x01",
    "\x01",
    "\x01\x02 \x03",
    "a\x7fb",
    "\x8f",
    "\x1b[0m",
    "\ufffd",
    "\ufffe\uffff",
    "\ufdd0",
    "\U0010ffff",
    "\ufff0",
    "\ufff00",
    "0\ufff0",
    "1\ufff0\u0301",
    "2\ufff0a\u0301",
    "\ufff0\u0301\ufff0",
    "\ufff8\ufff9",
    "\ue000\U000f0000",
    "\U000e0001",
    "0123456789",
    "3.14159",
    "-----",
    "......",
    "a" * 300,
    "あ" * 100,
    "\u0301" * 40,
    "e" + "\u0323\u0301" * 30,
    "x " * 100,
    "if x:\n        return  y\n",
    "| a | b |\n|---|---|\n",
    "https://example.com/?q=%E3%81%82&r=1#z",
    "C'est déjà l'été.",
)

#: What :func:`sample_texts` can make.
KINDS = ("uniform", "common", "marks", "rules", "pieces")

_MARKS = [
    *map(chr, range(0x300, 0x370)),
    *"\u200d\u3099\u309a\uff9e\u093c\u1161\u11a8\u0f71\u0334\u1ab0\u20d0\ufe0f\u0e33",
]


def sample_texts(n: int, seed: int, *, model: SpModel | None = None, kind: str = "") -> list[str]:
    """``n`` random texts of up to 30 parts, the same for the same arguments.

    ``kind`` is one of :data:`KINDS`, or empty for all of them in turn: ``uniform`` over all code points; ``common``,
    over the first plane with its first blocks favoured; ``marks``, letters, combining marks and line ends; ``rules``,
    whatever ``model`` normalises, and marks; ``pieces``, its pieces, symbols and whitespace. Without ``model`` the
    last two draw from a few texts of their own.
    """
    draw = random.Random(f"ucllm {seed} {kind}")  # noqa: S311 - sample texts, not secrets
    rules, pieces = list(HARD_TEXTS), ["the", " a", "ing", "は", "。"]
    symbols = ["<s>", "</s>", "<EOD>", "\n"]
    if model is not None:
        rules = list(decode_rules(model.charsmap)) if model.charsmap else rules
        pieces = [p.text.replace(SPACE, " ") for p in model.pieces]
        symbols = model.names(USER_DEFINED) or symbols
    blanks = [" ", "  ", "\t", "\u3000", "\n"]

    def part(how: str) -> str:
        if how == "uniform":
            return _character(draw.randrange(0x110000 - 0x800))
        if how == "common":
            return _character(draw.choice((draw.randrange(0x10000 - 0x800), draw.randrange(0x3100))))
        if how == "marks":
            return draw.choice(
                (
                    chr(draw.randrange(0x20, 0x7F)),
                    draw.choice(_MARKS),
                    draw.choice("<s>\n\r "),
                    chr(draw.randrange(0x250)),
                )
            )
        if how == "rules":
            return draw.choice((draw.choice(rules), draw.choice(_MARKS), ""))
        return draw.choice((draw.choice(pieces), draw.choice(pieces), draw.choice(symbols), draw.choice(blanks)))

    kinds = [kind] if kind else list(KINDS)
    return ["".join(part(kinds[i % len(kinds)]) for _ in range(draw.randrange(31))) for i in range(n)]


def _character(number: int) -> str:
    return chr(number if number < 0xD800 else number + 0x800)
