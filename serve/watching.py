"""/metrics and /slots: what a server does and has done, by llama.cpp's names; no prompt and no answer is in it."""

from typing import Any

from .service import Service

Json = dict[str, Any]


def metrics(service: Service) -> str:
    """Return Prometheus' text (tools/server/server-task.cpp has the names)."""
    counters, scheduler = service.scheduler.counters, service.scheduler
    n_active = len(scheduler.sequences.active)
    sums = (
        ("prompt_tokens_total", "Prompt tokens that were read, without those of the cache.", counters.prompt_tokens),
        ("prompt_tokens_cached_total", "Prompt tokens that the cache had.", counters.prompt_tokens_cached),
        ("prompt_seconds_total", "Seconds in which prompts were read.", counters.prompt_seconds),
        ("tokens_predicted_total", "Tokens of answers.", counters.predicted_tokens),
        ("tokens_predicted_seconds_total", "Seconds in which answers were made.", counters.predicted_seconds),
        ("n_decode_total", "Batches.", counters.n_decode),
        ("n_tokens_max", "Tokens of the longest prompt with its answer.", counters.n_tokens_max),
        ("x_answers_total", "Answers that ended.", counters.n_answers),
        ("x_answers_failed_total", "Answers that failed.", counters.failed),
        ("x_answers_cancelled_total", "Answers whose client went away.", counters.cancelled),
        ("x_answers_preempted_total", "Answers that had to wait again for room in the context.", counters.preempted),
    )
    levels = (
        ("prompt_tokens_seconds", "Prompt tokens a second.", _rate(counters.prompt_tokens, counters.prompt_seconds)),
        (
            "predicted_tokens_seconds",
            "Tokens of answers a second.",
            _rate(counters.predicted_tokens, counters.predicted_seconds),
        ),
        ("requests_processing", "Answers in the making.", n_active),
        ("requests_deferred", "Answers that wait.", scheduler.n_waiting),
        ("n_busy_slots_per_decode", "Sequences in a batch, on average.", counters.n_busy / max(counters.n_decode, 1)),
    )
    return "".join(
        f"# HELP llamacpp:{name} {text}\n# TYPE llamacpp:{name} {kind}\nllamacpp:{name} {value:g}\n"
        for kind, items in (("counter", sums), ("gauge", levels))
        for name, text, value in items
    )


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds else 0.0


def slots(service: Service) -> list[Json]:
    """Return what each place is at."""
    active = service.scheduler.sequences.active
    found = []
    for number in range(service.options.limits.n_parallel):
        slot: Json = {
            "id": number,
            "n_ctx": service.engine.n_ctx_seq,
            "speculative": False,
            "is_processing": number < len(active),
        }
        if number < len(active):
            generation = active[number].generation
            slot |= {
                "n_prompt_tokens": generation.n_prompt,
                "n_prompt_tokens_cache": generation.n_reused,
                "next_token": [
                    {
                        "has_next_token": True,
                        "n_remain": generation.n_predict - len(generation.tokens) if generation.n_predict >= 0 else -1,
                        "n_decoded": len(generation.tokens),
                    }
                ],
            }
        found.append(slot)
    return found
