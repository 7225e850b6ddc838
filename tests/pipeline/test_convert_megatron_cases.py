"""Every way a run may have been spread, and everything that may be wrong with what it left."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]

#: Runs that are converted, weight for weight.
GOOD: dict[str, dict[str, Any]] = {
    **{
        f"tp{tp}-{dtype}-{'tied' if tied else 'untied'}": {"tp": tp, "dtype": dtype, "tied": tied, "seed": tp}
        for tp, dtype, tied in [
            (1, "float32", True), (2, "float32", False), (4, "float32", True),
            (1, "bfloat16", False), (2, "bfloat16", True), (4, "float16", False),
        ]
    },
    "pp2": {"tp": 2, "pp": 2, "zero": 1},
    "no-pp": {"no_pp": True},
    "no-pp-tp2-untied": {"no_pp": True, "tp": 2, "tied": False, "dtype": "bfloat16"},
    "plain-gelu": {"activation": "gelu"},
    "openai-gelu": {"arguments": {"openai_gelu": True, "bias_gelu_fusion": False}},
    "onnx-safe": {"activation": "gelu", "arguments": {"onnx_safe": True, "bias_gelu_fusion": True}},
}  # fmt: skip

#: What is done to a run of tensor parallelism 2; the code of the first problem, and what its message names.
BAD: dict[str, tuple[str, list[str]]] = {
    "evil_state": ("checkpoint.unsafe", ["posix.mkdir", "mp_rank_01"]),
    "evil_layer": ("checkpoint.damaged", ["layer_02-model_01"]),
    "renamed_getattr": ("checkpoint.unsafe", ["getattr"]),
    "old_format": ("checkpoint.damaged", ["mp_rank_00"]),
    "cut": ("checkpoint.damaged", ["mp_rank_01", "layer_02-model_01"]),
    "lost": ("checkpoint.incomplete", ["mp_rank_01", "layer_02-model_01", "layer_04-model_00"]),
    "no_states": ("checkpoint.incomplete", ["mp_rank_00"]),
    "zero_3": ("checkpoint.zero-3", ["ZeRO stage 3"]),
    "other_step": ("checkpoint.mixed", ["mp_rank_01_model_states.pt: 10"]),
    "renamed": ("checkpoint.mixed", ["global_step500: 500"]),
    "another_steps_layer": ("checkpoint.mixed", ["layer_02", "input_layernorm.weight"]),
    "one_layer_more": ("checkpoint.mixed", ["layer_05-model_00"]),
    "another_shape": ("checkpoint.mixed", ["dense_h_to_4h.bias", "(7,)"]),
    "another_weight": ("checkpoint.mixed", ["self_attention.rotary"]),
    "not_numbers": ("weights.not-finite", ["h.0.mlp.c_fc.bias"]),
}

#: Arguments of models that GPT2 cannot express, and what the refusal says.
OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "rotary": ({"use_rotary_position_embeddings": True, "add_position_embedding": False}, "rotary"),
    "alibi": ({"alibi": True}, "ALiBi"),
    "bias": ({"add_bias_linear": False}, "without bias"),
    "swiglu": ({"swiglu": True}, "SwiGLU"),
    "rmsnorm": ({"normalization": "rmsnorm"}, "RMS"),
    "1p": ({"apply_layernorm_1p": True}, "around one"),
    "post": ({"apply_residual_connection_post_layernorm": True}, "residual"),
    "moe": ({"num_experts": [4]}, "MoE"),
    "gqa": ({"num_key_value_heads": 2}, "grouped"),
    "te": ({"transformer_impl": "transformer_engine"}, "Transformer Engine"),
}

#: Other ways in which a whole checkpoint may lie in its folder.
PLACES = ("latest_is_incomplete", "only_files")


@pytest.fixture(scope="module")
def results(env_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All cases in one process: importing torch takes longer than any of them."""
    cases: dict[str, dict[str, Any]] = {name: {"spec": spec} for name, spec in GOOD.items()}
    cases["sharded"] = {"spec": {"tp": 2}, "limit": 40_000}
    cases |= {name: {"spec": {"tp": 2}, "break": name} for name in (*BAD, *PLACES)}
    cases |= {name: {"spec": {"arguments": arguments}} for name, (arguments, _text) in OTHER.items()}
    cases["no-weights"] = {"spec": {"no_pp": True}, "break": "no_weights"}
    cases["all-at-once"] = {"spec": {"tp": 2, "arguments": {"swiglu": True, "num_experts": [4]}}, "break": "lost"}
    listed = [{"break": None, "limit": None, **case} for case in cases.values()]
    script, folder = Path(__file__).with_name("megatron_cases.py"), tmp_path_factory.mktemp("cases")
    done = subprocess.run(
        [env_python, "-P", script, folder, json.dumps(listed)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "UCLLM_LANG": "en"},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1])))


@pytest.mark.parametrize("name", GOOD)
def test_every_weight_comes_through(results: dict[str, dict[str, Any]], name: str) -> None:
    result = results[name]
    assert result.get("problems") is None
    assert result["same"]
    assert result["error"] == 0.0
    assert result["checks"] == []
    assert result["noticed"] == 1, "one changed bit must be seen"
    assert result["activation"] == GOOD[name].get("activation", "gelu_new")
    assert result["tied"] == GOOD[name].get("tied", True)
    assert result["files"] == 1


def test_large_models_are_several_files(results: dict[str, dict[str, Any]]) -> None:
    assert results["sharded"]["files"] > 2
    assert results["sharded"]["same"]
    assert results["sharded"]["error"] == 0.0


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(results: dict[str, dict[str, Any]], name: str) -> None:
    code, words = BAD[name]
    problems = results[name]["problems"]
    assert code in [problem[0] for problem in problems]
    text = " ".join(problem[1] for problem in problems)
    assert all(word in text for word in words), text
    assert all(hint for _code, _message, hint in problems)
    assert not results[name]["pwned"]


@pytest.mark.parametrize("name", OTHER)
def test_what_gpt2_cannot_express_is_refused(results: dict[str, dict[str, Any]], name: str) -> None:
    problems = results[name]["problems"]
    assert {problem[0] for problem in problems} == {"convert.not-gpt2"}
    assert any(OTHER[name][1] in problem[1] for problem in problems)


def test_all_problems_at_once(results: dict[str, dict[str, Any]]) -> None:
    codes = [problem[0] for problem in results["all-at-once"]["problems"]]
    assert codes == ["checkpoint.incomplete", "convert.not-gpt2", "convert.not-gpt2"]


def test_no_layer_files_and_no_weights(results: dict[str, dict[str, Any]]) -> None:
    assert results["no-weights"]["problems"][0][0] == "checkpoint.incomplete"


def test_an_incomplete_latest_is_passed_over(results: dict[str, dict[str, Any]]) -> None:
    result = results["latest_is_incomplete"]
    assert result["step"] == 20
    assert result["same"]
    assert any("global_step40" in note and "layer_02-model_01" in note for note in result["notes"])


def test_a_folder_of_any_name_is_taken_when_the_files_lie_in_it(results: dict[str, dict[str, Any]]) -> None:
    assert results["only_files"]["same"]
