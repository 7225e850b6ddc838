"""Load a model folder as a stranger would, generate from it, and compare it with what it was made from.

    python -m pipeline.generate MODEL_DIR --prompt "Once upon a time," [--chat] [--reference DIR]

A process of its own, so that nothing the writer held in memory can hide a fault of the files. The last line of standard
output is the result, as JSON (:func:`check`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import spm
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.tokenizer_parity import parity

if TYPE_CHECKING:
    import torch

#: The largest difference of a logit between two copies of the same fp32 weights, computed on a CPU.
LOGIT_TOLERANCE = 1e-4
#: Tokens of the sample.
SAMPLE_TOKENS = 40
#: Windows compared, and the tokens of each.
WINDOWS, WINDOW_TOKENS = 4, 64
#: What a published vocabulary meets: scripts, emoji, white space, bytes it does not know.
PARITY_TEXTS = (
    "Once upon a time, there was a boy who hurried.",
    "親譲りの無鉄砲で小供の時から損ばかりしている。",
    "  two leading spaces, and   three within\n\nand an empty line\n",
    "### Human: 名前は？ ### Assistant: 坊っちゃんです。<EOD>",
    "<s>leading special token",
    "\nleading newline\ttab",
    "🍣🧑‍🤝‍🧑 emoji, ﬁ ligature, ①②③, ｶﾀｶﾅ, e\u0301",
    "1234567890 3.14159 https://example.com/?q=1&r=2",
)


def real_vocabulary(folder: Path, tokenizer: Any) -> int:
    """The number of ids that stand for something; the model's rows above are padding."""
    model = folder / "tokenizer.model"
    if model.is_file():
        return int(spm.load(model).get_piece_size())
    return len(tokenizer)


def load(folder: Path) -> Any:
    """The model in ``folder``, in fp32 on the CPU, nothing fetched and no code of the folder's run."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.float().eval()


def windows(vocabulary: int, positions: int) -> torch.Tensor:
    """The ids whose logits are compared: int64 [:data:`WINDOWS`, tokens], each below ``vocabulary``."""
    import torch

    source = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (WINDOWS, min(WINDOW_TOKENS, positions)), generator=source)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The model's output for ``ids``: float32 [windows, tokens, rows of the vocabulary]."""
    import torch

    with torch.no_grad():
        output: torch.Tensor = model(input_ids=ids).logits
    return output


def compare(folder: Path, reference: Path, vocabulary: int) -> float:
    """The largest absolute difference of a logit between two folders; NaN when either is not finite."""
    model = load(folder)
    ids = windows(vocabulary, _positions(model))
    ours = logits(model, ids)
    del model  # one model in memory at a time
    return float((ours - logits(load(reference), ids)).abs().max())


def _positions(model: Any) -> int:
    return int(getattr(model.config, "max_position_embeddings", None) or WINDOW_TOKENS)


def sample(model: Any, tokenizer: Any, vocabulary: int, prompt: str, chat: bool) -> dict[str, Any]:
    """Continue ``prompt`` greedily: ``{"sample", "new_tokens", "problems"}``.

    ``chat`` puts the prompt through the chat template, as the user's turn. ``sample`` holds the prompt as well.
    """
    import torch

    text = prompt
    if chat:
        turns = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not chat)
    room = min(SAMPLE_TOKENS, _positions(model) // 2)
    keep = _positions(model) - room  # the end of a prompt that is too long
    ids, mask = inputs["input_ids"][:, -keep:], inputs["attention_mask"][:, -keep:]
    length = ids.shape[1]
    if length == 0:
        return {"sample": "", "new_tokens": 0, "problems": [_("The prompt is empty.")]}
    if int(ids.max()) >= model.get_input_embeddings().weight.shape[0]:
        return {"sample": "", "new_tokens": 0, "problems": [_("The tokenizer gives ids that the model does not have.")]}
    if not bool(torch.isfinite(logits(model, ids)).all()):
        return {"sample": "", "new_tokens": 0, "problems": [_("The model's output is not a number.")]}
    with torch.no_grad():
        output = model.generate(ids, attention_mask=mask, max_new_tokens=room, do_sample=False)[0]
    problems = []
    beyond = sorted({int(each) for each in output if int(each) >= vocabulary})
    if beyond:
        problems.append(_("It generated ids that stand for no token: {ids}.").format(ids=", ".join(map(str, beyond))))
    text = tokenizer.decode(output, skip_special_tokens=True)
    return {"sample": text, "new_tokens": int(output.shape[0]) - length, "problems": problems}


def check(folder: Path, prompt: str, *, chat: bool = False, reference: Path | None = None) -> dict[str, Any]:
    """Everything a folder must stand up to before it is published.

    Returns ``sample``, ``new_tokens``, ``chat`` (the template was used), ``max_logit_error`` (``None`` without
    ``reference``), ``parity_texts`` (how many texts had SentencePiece's ids; ``None`` without a unigram
    ``tokenizer.model``), ``versions`` and ``problems``, a list of sentences that is empty when all is well.
    """
    import torch
    import transformers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    vocabulary = real_vocabulary(folder, tokenizer)
    templated = chat and bool(tokenizer.chat_template)
    result: dict[str, Any] = {"chat": templated, "max_logit_error": None, "parity_texts": None}
    result.update(sample(load(folder), tokenizer, vocabulary, prompt, templated))
    problems: list[str] = result["problems"]
    if (folder / "tokenizer.model").is_file():
        texts = [*parity_texts(tokenizer), prompt]
        try:
            problems += tokenizer_problems(folder, texts)
            result["parity_texts"] = len(texts)
        except UcllmError as error:
            if error.problems[0].code != "tokenizer-kind":  # a model that is sound, but of a kind not compared here
                problems.append(error.problems[0].message)
    if reference is not None and not problems:
        difference = compare(folder, reference, vocabulary)
        result["max_logit_error"] = difference
        if not difference <= LOGIT_TOLERANCE:  # also when it is NaN
            text = _("Its logits differ from those of {path} by {error}.")
            problems.append(text.format(path=reference, error=f"{difference:.2e}"))
    result["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    return result


def parity_texts(tokenizer: Any) -> list[str]:
    """Those of :data:`PARITY_TEXTS` that the installed transformers can read as SentencePiece does.

    Where ``split_special_tokens`` does not reach fast tokenizers (4.37), a special token is always cut out first: at
    the start of a text it then hides the blank that SentencePiece reads there.
    """
    asked = getattr(tokenizer, "split_special_tokens", False)
    splits = not asked or getattr(getattr(tokenizer, "backend_tokenizer", None), "encode_special_tokens", False)
    return [text for text in PARITY_TEXTS if splits or not text.startswith("<s>")]


def tokenizer_problems(folder: Path, texts: Sequence[str]) -> list[str]:
    """Sentences about ids of the folder's tokenizer that are not those of its ``tokenizer.model``.

    Two readings of the same score are both right (:mod:`pipeline.hf_tokenizer` says why they may differ).
    """
    wrong = [each.text for each in parity(folder / "tokenizer.model", folder, texts) if not each.tie]
    return [
        _("Its tokenizer does not read {text} as SentencePiece does.").format(text=repr(text))
        for text in dict.fromkeys(wrong)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a folder and print the result; 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.generate", description="Check and try a model folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--chat", action="store_true", help="use the chat template")
    parser.add_argument("--reference", type=Path, help="a folder that must give the same logits")
    options = parser.parse_args(arguments)
    result = check(options.folder, options.prompt, chat=options.chat, reference=options.reference)
    print(json.dumps(result))
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
