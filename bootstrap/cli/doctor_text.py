"""The doctor's report as text: what is wrong first, then everything by the guide's steps, the fix command last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bootstrap.cli.base import style
from bootstrap.requirements import NODES_STEP
from pipeline.i18n import N_, _

MARKS = {"ok": "✓", "warn": "!", "fail": "✗", "blocked": "·", "unknown": "?", "skipped": "-"}
COLORS = {
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
    "blocked": "bright_black",
    "unknown": "yellow",
    "skipped": "bright_black",
}
_REST = "2"
#: The guide's steps, in its order.
STEPS = {
    "0-0": N_("Before Step 0: the machine"),
    "0-1": N_("Step 0-1: conda"),
    "0-2": N_("Step 0-2: Python environment, CUDA, torch"),
    "0-3": N_("Step 0-3: packages and DeepSpeed"),
    "0-4": N_("Step 0-4: Megatron-DeepSpeed"),
    "0-5": N_("Step 0-5: apex"),
    "0-6": N_("Step 0-6: FlashAttention 2"),
    "0-7": N_("Step 0-7: llm-jp-sft"),
    _REST: N_("Steps 1 to 5: data and logins"),
    NODES_STEP: N_("The nodes of the job"),
}


def _group(step: str) -> str:
    """The heading a step stands under: one for all that comes after Step 0."""
    return step if step in STEPS else _REST


#: Findings whose evidence is a table that people look for also when all is well.
TABLES = ("ops.deepspeed",)


def render(data: Mapping[str, Any]) -> str:
    """The findings as text, without the first line, which is printed before the facts are collected."""
    findings = data["findings"]
    lines = [*_problems(findings), *_steps(data["requirements"], findings)]
    counts = {status: sum(item["status"] == status for item in findings) for status in MARKS}
    lines += ["", _summary(counts)]
    fix = data.get("fix_command")
    if data.get("plan"):
        lines += ["", render_plan(data["plan"])]
        if not all(action["waits_for"] for action in data["plan"]):
            lines += ["", _("Do it with: `{command}`").format(command=f"{fix} --yes")]
    elif fix and any(_automatic(item) for item in findings):
        lines += [_("Repair with: `{command}`").format(command=fix)]
    return "\n".join(lines)


def _automatic(finding: Mapping[str, Any]) -> bool:
    return finding["status"] in ("fail", "warn") and bool(finding["remedy"]) and bool(finding["remedy"]["automatic"])


def _problems(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong: evidence and remedy, and in one line what waits for it."""
    lines: list[str] = []
    for status in ("fail", "unknown", "warn"):
        for item in findings:
            if item["status"] != status:
                continue
            lines += ["", _line(item, len(item["id"]))]
            lines += [f"      {line}" for text in item["evidence"] for line in text.splitlines()]
            remedy = item["remedy"]
            if remedy:
                lines.append("      " + _("remedy: {text}").format(text=remedy["text"]))
                lines += [f"        $ {line}" for line in remedy["commands"]]
            waiting = [other["id"] for other in findings if item["id"] in _roots(other, findings)]
            if waiting:
                lines.append("      " + _("waiting for it: {ids}").format(ids=", ".join(waiting)))
    return lines


def _roots(finding: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> set[str]:
    """What a blocked finding waits for in the end."""
    by_id = {item["id"]: item for item in findings}
    roots: set[str] = set()
    for blocker in finding["blocked_by"]:
        further = _roots(by_id[blocker], findings) if blocker in by_id else set()
        roots |= further or {blocker}
    return roots


def _steps(requirements: Sequence[Mapping[str, Any]], findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is fine or does not apply, by step; what is wrong stands above already, and what waits for it with it."""
    step_of = {item["id"]: _group(item["step"]) for item in requirements}
    tier_of = {item["id"]: item["tier"] for item in requirements}
    width = max((len(item["id"]) for item in findings), default=0)
    lines: list[str] = []
    for step, heading in STEPS.items():
        mine = [item for item in findings if step_of.get(item["id"]) == step and item["status"] in ("ok", "skipped")]
        shown = [item for item in mine if not (item["status"] == "skipped" and tier_of[item["id"]] != "quick")]
        if not shown:
            continue
        lines += ["", _(heading)]
        for item in shown:
            lines.append(_line(item, width))
            if item["id"] in TABLES and item["status"] == "ok":
                lines += [f"      {line}" for text in item["evidence"] for line in text.splitlines()]
    later = [item["id"] for item in findings if item["status"] == "skipped" and tier_of.get(item["id"]) != "quick"]
    if later:
        lines += ["", _("Not looked at without --deep or --smoke: {ids}").format(ids=", ".join(later))]
    return lines


def _line(item: Mapping[str, Any], width: int) -> str:
    mark = style(MARKS[item["status"]], COLORS[item["status"]])
    return f"  {mark} {item['id']:<{width}}  {item['summary']}"


def render_plan(plan: Sequence[Mapping[str, Any]]) -> str:
    """The plan as text: each action, and its exact commands."""
    lines = [_("What --fix would do:")]
    for action in plan:
        waits = ", ".join(action.get("waits_for", ()))
        note = " " + _("(not before {ids} is repaired)").format(ids=waits) if waits else ""
        lines.append(f"  {action['requirement']}: {action['action']}{note}")
        lines += [f"      $ {line}" for line in action["commands"]]
    return "\n".join(lines)


def _summary(counts: Mapping[str, int]) -> str:
    names = {
        "ok": _("{n} fine"),
        "warn": _("{n} warnings"),
        "fail": _("{n} failed"),
        "blocked": _("{n} waiting"),
        "unknown": _("{n} could not be checked"),
        "skipped": _("{n} skipped"),
    }
    return ", ".join(names[status].format(n=count) for status, count in counts.items() if count)


def render_list(data: Mapping[str, Any]) -> str:
    """``--list``: what the profile asks for, by step."""
    requirements = data["requirements"]
    width = max((len(item["id"]) for item in requirements), default=0)
    lines: list[str] = []
    for step, heading in STEPS.items():
        mine = [item for item in requirements if _group(item["step"]) == step]
        if mine:
            lines += ["", _(heading)]
        for item in mine:
            marks = [item["tier"]] if item["tier"] != "quick" else []
            marks += [_("optional")] if item["optional"] else []
            marks += [_("can be repaired by --fix")] if item["fixable"] else []
            lines.append(f"  {item['id']:<{width}}  {item['title']}" + (f"  [{', '.join(marks)}]" if marks else ""))
    return "\n".join(lines)


def render_explanation(data: Mapping[str, Any]) -> str:
    """``--explain ID``: what, why, where in the guide, what it needs."""
    item = data["requirement"]
    lines = [f"{item['id']}: {item['title']}", "", item["why"], ""]
    if item["step"] == NODES_STEP:
        lines.append(_("It is checked with --hostfile, in every profile."))
    else:
        lines.append(_("Step {step} of the guide").format(step=item["step"]))
    if item["needs"]:
        lines.append(_("It is checked after: {ids}").format(ids=", ".join(item["needs"])))
    if item["tier"] != "quick":
        lines.append(_("It is checked with --{tier}.").format(tier=item["tier"]))
    lines.append(_("`ucllm doctor --fix` can repair it.") if item["fixable"] else _("It is repaired by hand."))
    if item["profiles"]:
        lines.append(_("Profiles that ask for it: {names}").format(names=", ".join(item["profiles"])))
    return "\n".join(lines)
