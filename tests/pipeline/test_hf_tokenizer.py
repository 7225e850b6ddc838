"""A converted tokenizer against SentencePiece itself, for models of several kinds trained here."""

from __future__ import annotations

import io
import json
import os
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    # The libraries' own deprecations, at import.
    warnings.simplefilter("ignore")
    sentencepiece = pytest.importorskip("sentencepiece", reason="the converter runs in the environment")
    tokenizers = pytest.importorskip("tokenizers", reason="the converter runs in the environment")
    transformers = pytest.importorskip("transformers", reason="the converter runs in the environment")

from pipeline.errors import UcllmError
from pipeline.hf_charsmap import build_normalizer, charsmap_steps, decode_rules, without_rules
from pipeline.hf_tokenizer import read_model, special_tokens, write_hf_tokenizer
from pipeline.tokenizer_parity import Mismatch, is_tie, parity
from pipeline.tokenizer_samples import HARD_TEXTS, KINDS, sample_texts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

GUIDE = ["<s>", "</s>", "<pad>", "<CLS>", "<SEP>", "<EOD>", "<MASK>", "\n"]
PUBLISHED: dict[str, Any] = {
    "byte_fallback": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "remove_extra_whitespaces": False,
    "user_defined_symbols": GUIDE,
    "bos_id": -1,
    "eos_id": -1,
}
KINDS_OF_MODEL: dict[str, dict[str, Any]] = {
    "published": PUBLISHED,
    "library defaults": {},
    "identity": {"normalization_rule_name": "identity", "byte_fallback": True},
    "folds case": {"normalization_rule_name": "nmt_nfkc_cf", "byte_fallback": True, "remove_extra_whitespaces": False},
    "no prefix": {"add_dummy_prefix": False, "byte_fallback": True, "remove_extra_whitespaces": False},
    "pieces across spaces": {"split_by_whitespace": False, "byte_fallback": True},
    "odd symbols": {
        "byte_fallback": True,
        "user_defined_symbols": ["<s>x", "①", "👩\u200d👧", "ab", "abc", "\t", "\u0301", "é", "=", "\n"],
    },
    "control symbols": {"byte_fallback": True, "control_symbols": ["<EOD>", "[X]"], "pad_id": 3},
}
WORDS = (  # noqa: SIM905  a text
    "once upon a time there was boy who hurried to the town and ate forty dumplings in hot spring water while "
    "teacher said nothing about it; "
    "吾輩は猫である 名前はまだ無い どこで生れたか頓と見当がつかぬ Élan café naïve 한국어 ---- .. 2024 ab abc"
).split()


def train(path: Path, **options: Any) -> Path:
    lines = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 9)) + "  " * (i % 3) + "x" for i in range(1, 300)]
    content = io.BytesIO()
    wanted = {"model_type": "unigram", "vocab_size": 420, "hard_vocab_limit": False, "num_threads": 1, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=content, minloglevel=2, character_coverage=0.98, **wanted
    )
    path.write_bytes(content.getvalue())
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: train(folder / f"{i}.model", **kind) for i, (name, kind) in enumerate(KINDS_OF_MODEL.items())}


@pytest.fixture(scope="module")
def published(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("published")
    write_hf_tokenizer(trained["published"], folder, model_max_length=128)
    return trained["published"], folder


def firm(found: list[Mismatch]) -> list[Mismatch]:
    """Without those where SentencePiece itself goes by rounding."""
    return [each for each in found if not each.tie]


@pytest.mark.parametrize("kind", KINDS_OF_MODEL)
def test_ids_and_text_are_sentencepieces(trained: dict[str, Path], kind: str, tmp_path: Path) -> None:
    model = trained[kind]
    write_hf_tokenizer(model, tmp_path, model_max_length=128)
    texts = [*HARD_TEXTS, *sample_texts(300, 1, model=read_model(model))]
    found = parity(model, tmp_path, texts)
    assert firm(found) == []
    # Ties are for runs of one character; many of them would mean something else. Up to SentencePiece 0.2.1 its rounding
    # decides nearly every one of them, and each shows once for each of the three ways of loading.
    assert len({each.text for each in found}) <= 3 * len(texts) // 100


def test_the_librarys_own_conversion_fails_here(trained: dict[str, Path], tmp_path: Path) -> None:
    """The comparison can see: a plain conversion is found out."""
    write_hf_tokenizer(trained["published"], tmp_path, model_max_length=128)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    steps = content["normalizer"]["normalizers"]
    content["normalizer"]["normalizers"] = [s for s in steps if s["type"] in ("Prepend", "Precompiled")] + steps[-1:]
    path.write_text(json.dumps(content), encoding="utf-8")
    found = {each.text for each in firm(parity(trained["published"], tmp_path, HARD_TEXTS))}
    assert {"a\r\nb", "①\u0301", "\u1100\u1161\u11a8", "か\u3099は\u309aわ\u3099"} <= found


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text() | st.text(st.sampled_from("ae가각カか①ſ<s>\n\r \u0301\u0323\u3099\uff9e\u200d\ufff0012▁")))
def test_any_text(published: tuple[Path, Path], text: str) -> None:
    model, folder = published
    ids = sentencepiece.SentencePieceProcessor(model_file=str(model)).encode(text)
    encoded = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert encoded == ids or is_tie(read_model(model), ids, encoded)


def test_normalisation_is_sentencepieces(trained: dict[str, Path]) -> None:
    model = read_model(trained["published"])
    normalizer = build_normalizer(charsmap_steps(model.charsmap, ["\n"]))
    rules = dict(decode_rules(model.charsmap))
    rules.pop("\n")
    longest = max(map(len, rules))

    def read(text: str) -> str:
        out, at = [], 0
        while at < len(text):
            sizes = (n for n in range(min(longest, len(text) - at), 0, -1) if text[at : at + n] in rules)
            size = next(sizes, 0) if text[at] != "\n" else 0
            out.append(rules[text[at : at + size]] if size else text[at])
            at += size or 1
        return "".join(out)

    for kind in KINDS:
        for text in sample_texts(1000, 5, model=model, kind=kind):
            assert normalizer.normalize_str(text) == read(text), ascii(text)


def test_rules_can_be_switched_off(trained: dict[str, Path]) -> None:
    charsmap = read_model(trained["published"]).charsmap
    before, after = decode_rules(charsmap), decode_rules(without_rules(charsmap, ["\n", "①", "no such rule"]))
    assert before.keys() - after.keys() == {"\n", "①"}
    assert after == {key: value for key, value in before.items() if key in after}
    assert before["e\u0301"] == "é"
    assert unicodedata.normalize("NFKC", "①") == before["①"]


def test_roles(published: tuple[Path, Path], tmp_path: Path) -> None:
    model, folder = published
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    roles = ("unk", "bos", "eos", "pad", "cls", "sep", "mask")
    assert [getattr(tokenizer, f"{role}_token_id") for role in roles] == [0, 1, 6, 3, 4, 5, 7]
    assert len(tokenizer) == tokenizer.vocab_size == len(read_model(model).pieces)
    assert tokenizer.model_max_length == 128
    assert "\n" not in tokenizer.all_special_tokens
    batch = tokenizer(["once upon a time", "boy"], padding=True)
    assert batch["input_ids"][1][-1] == 3
    assert batch["attention_mask"][1][-1] == 0
    ids = tokenizer("boy<EOD>\n")["input_ids"]
    assert tokenizer.decode(ids) == "boy<EOD>\n"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "boy\n"

    template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    write_hf_tokenizer(model, tmp_path, model_max_length=64, eos_token="</s>", chat_template=template)
    chat = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert chat.eos_token_id == 2
    text = chat.apply_chat_template([{"role": "user", "content": "boy"}], tokenize=False)
    assert text == "boy</s>"
    assert chat(text)["input_ids"][-1] == 2
    assert (tmp_path / "tokenizer.model").read_bytes() == model.read_bytes()


def test_pads_with_eos_where_there_is_no_padding(trained: dict[str, Path]) -> None:
    roles = special_tokens(read_model(trained["library defaults"]))
    assert roles == {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model_type": "bpe"}, "bpe"),
        ({"model_type": "char"}, "char"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
        ({"user_defined_symbols": ["①②"]}, "①②"),
    ],
)
def test_refuses_what_cannot_be_exact(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    model = train(tmp_path / "m.model", **options)
    with pytest.raises(UcllmError, match=why):
        write_hf_tokenizer(model, tmp_path / "out", model_max_length=128)
    assert not (tmp_path / "out").exists()


def test_refuses_an_eos_the_model_lacks(published: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UcllmError, match="<end>"):
        write_hf_tokenizer(published[0], tmp_path / "out", model_max_length=128, eos_token="<end>")
    assert not (tmp_path / "out").exists()


def test_the_published_tokenizer(shared: Path, tmp_path: Path) -> None:
    model = shared / "oracle" / "tokenizer" / "botchan.model"
    if not model.exists():
        pytest.skip(f"{model} is not there")
    write_hf_tokenizer(model, tmp_path, model_max_length=2048)
    count = int(os.environ.get("UCLLM_TEST_SAMPLES", "200"))
    read = read_model(model)
    for kind in KINDS:
        assert firm(parity(model, tmp_path, sample_texts(count, 0, model=read, kind=kind))) == []
    assert firm(parity(model, tmp_path, HARD_TEXTS)) == []
