"""The report of `moe-gguf inspect`, for reading: the dict that `--json` prints comes in, aligned text goes out."""

from textwrap import indent
from typing import Any

from .tables import table
from .terminal import format_bytes, format_count

# The quantizations whose memory is shown when not all are asked for.
SHOWN = ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
TOKENIZERS = {"llama": "SentencePiece", "gpt2": "byte-level BPE", "bert": "WordPiece", "t5": "Unigram"}


def render(report: dict[str, Any], every_type: bool = False) -> str:
    """Return the report as text; `every_type` shows the memory of all quantizations."""
    blocks = [
        report["path"],
        indent("\n".join(f"{label:<13}  {text}" for label, text in _facts(report)), "  "),
        _shares("By role", "role", report["roles"], report["bytes"]),
        _shares("By type", "type", report["types"], report["bytes"]),
        _memory(report, every_type),
        *(f"Note: {note}" for note in report["notes"]),
    ]
    return "\n\n".join(block for block in blocks if block)


def render_tensors(tensors: list[dict[str, Any]]) -> str:
    """Return the table of tensors."""
    head = ["tensor", "shape", "type", "size", "role"]
    rows = [
        [one["name"], " x ".join(map(str, one["shape"])), one["type"], format_bytes(one["bytes"]), one["role"]]
        for one in tensors
    ]
    return "\nTensors\n" + indent(table(head, rows, right={1, 3}), "  ")


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    parameters = report["parameters"]
    size = f"{format_bytes(report['bytes'])}, {report['bpw']:.2f} bits per weight"
    facts = [
        ("name", report["name"] or "(none)"),
        ("kind", " of ".join(word for word in (report["kind"], report["file_type"]) if word)),
        ("architecture", _shape(report)),
        ("experts", _experts(report)),
        ("parameters", _in_words(parameters["total"], parameters["active"], report["n_expert"])),
    ]
    facts += [("", line) for line in explain_parameters(report)]
    facts += [
        ("size", size + (f", {len(report['files'])} files" if len(report["files"]) > 1 else "")),
        ("context", f"{report['n_ctx_train']} tokens" if report["n_ctx_train"] else "not stated"),
        ("tokenizer", _tokenizer(report["tokenizer"])),
        ("chat template", report["chat_template"]["kind"] if report["chat_template"] else "none"),
    ]
    return facts


def _shape(report: dict[str, Any]) -> str:
    parts = [report["architecture"], f"{report['n_layer']} layers", f"n_embd {report['n_embd'] or 'not stated'}"]
    for key in ("n_ff", "n_head", "n_head_kv"):
        if report[key]:
            parts.append(f"{key} {report[key]}")
    return ", ".join(parts)


def _experts(report: dict[str, Any]) -> str:
    if not report["n_expert"]:
        return "none: a dense model"
    return f"{report['n_expert']}, {report['n_expert_used']} per token ({report['expert_layout']})"


def _in_words(total: int, active: int, n_expert: int) -> str:
    words = f"{format_count(total)} in all"
    return words + (f", {format_count(active)} active per token" if n_expert else "")


def explain_parameters(report: dict[str, Any]) -> list[str]:
    """Return why an 8x7B has neither 56 B parameters nor the speed of one that had; nothing for a dense model."""
    n_expert, parameters = report["n_expert"], report["parameters"]
    if n_expert < 2 or not parameters["experts"]:
        return []
    dense = parameters["dense"]
    scale, unit = next(((10**power, word) for power, word in ((9, "B"), (6, "M")) if dense >= 10**power), (1000, "K"))
    each = round(dense / scale, 0 if dense >= 5 * scale else 1)
    apart = format_count(parameters["total"] - parameters["experts"])
    shared = any(row["role"] == "shared experts" for row in report["roles"])
    once = "shared experts, attention, embeddings and norms" if shared else "attention, embeddings and norms"
    return [
        f"Not {n_expert} x {each:g} {unit} = {n_expert * each:g} {unit}: only the experts' feed-forward layers "
        f"exist {n_expert} times ({format_count(parameters['experts'])});",
        f"{once} exist once ({apart}). A token passes {report['n_expert_used']} of {n_expert} experts.",
    ]


def _tokenizer(tokenizer: dict[str, Any]) -> str:
    if not tokenizer["model"]:
        return "none"
    kind = TOKENIZERS.get(tokenizer["model"], tokenizer["model"])
    pre = f", pre-tokenizer {tokenizer['pre']}" if tokenizer["pre"] else ""
    return f"{kind}, {tokenizer['tokens']} tokens{pre}"


def _shares(title: str, key: str, shares: list[dict[str, Any]], total: int) -> str:
    head = ["", "tensors", "parameters", "size", "share", "bits/weight"]
    rows = [
        [
            share[key],
            str(share["tensors"]),
            format_count(share["parameters"]),
            format_bytes(share["bytes"]),
            f"{100 * share['bytes'] / total:.1f} %" if total else "",
            f"{share['bpw']:.2f}",
        ]
        for share in shares
    ]
    return f"{title}\n" + indent(table(head, rows, right=range(1, 6)), "  ")


def _memory(report: dict[str, Any], every_type: bool) -> str:
    memory = report["memory"]
    kv_bytes = memory["kv_bytes"]
    cache = f"KV cache {memory['kv_type']}: {format_bytes(kv_bytes)}" if kv_bytes is not None else "KV cache not known"
    head, rows = ["", "weights", "bits/weight", "with KV cache"], []
    for one in memory["quantizations"]:
        if every_type or one["type"] in SHOWN or one["type"] == report["file_type"]:
            mark = " (this file)" if one["type"] == report["file_type"] and report["kind"] == "GGUF" else ""
            total = format_bytes(one["total_bytes"]) + mark if one["total_bytes"] is not None else "not known"
            rows.append([one["type"], format_bytes(one["weights_bytes"]), f"{one['bpw']:.2f}", total])
    if not rows:
        return ""
    return f"Memory at {memory['n_ctx']} tokens of context ({cache})\n" + indent(table(head, rows, right={1, 2}), "  ")
