"""What a server says of itself and its models: /props and /v1/models, by llama.cpp's and OpenAI's names."""

from functools import cache
from typing import Any

from gguf.constants import Keys

from ..models.summary import Summary
from ..runner.model import special_text
from ..runner.sampling import SamplingOptions
from ..runner.templates.wants import wants_of
from .models import Models
from .service import Service

Json = dict[str, Any]


def props(service: Service) -> Json:
    """Return /props: llama.cpp's keys, and `x_model`, what is special about a mixture."""
    chat, model = service.chat, service.model
    found: Json = {
        "default_generation_settings": {
            "params": sampling_json(service.sampling) | {"n_predict": service.options.n_predict},
            "n_ctx": service.engine.n_ctx_seq,
        },
        "total_slots": service.options.limits.n_parallel,
        "model_alias": service.name,
        "model_ftype": service.summary.file_type or "",
        "model_path": service.name,
        "modalities": {"vision": False, "video": False, "audio": False},
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "ui": True,
        "ui_settings": {},
        "chat_template": chat.template.source,
        "chat_template_caps": template_caps(service),
        "bos_token": special_text(model, Keys.Tokenizer.BOS_ID),
        "eos_token": special_text(model, Keys.Tokenizer.EOS_ID),
        "build_info": build_info(),
        "is_sleeping": False,
        "cors_proxy_enabled": False,
        "x_model": x_model(service),
    }
    if chat.tool_template is not chat.template and chat.tool_template != chat.template:
        found["chat_template_tool_use"] = chat.tool_template.source
    return found


def build_info() -> str:
    """Return which program answers."""
    return f"moe-gguf {_version()}"


def fingerprint() -> str:
    """Return what OpenAI calls the system's fingerprint, in the form that llama.cpp's has."""
    return f"b{_version()}"


@cache
def _version() -> str:
    from importlib.metadata import version

    return version("moe-gguf")


def sampling_json(sampling: SamplingOptions) -> Json:
    """Return sampling options by the names of llama.cpp's API."""
    same = (
        *("dynatemp_range", "dynatemp_exponent", "top_k", "top_p", "min_p", "top_n_sigma", "xtc_probability"),
        *("xtc_threshold", "typical_p", "repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty"),
        *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "mirostat", "mirostat_tau"),
        *("mirostat_eta", "ignore_eos"),
    )
    found = {name: getattr(sampling, name) for name in same}
    seed = -1 if sampling.seed is None else sampling.seed
    found["dry_sequence_breakers"] = list(sampling.dry_sequence_breakers)
    return {"seed": seed, "temperature": sampling.temp, **found, "samplers": list(sampling.samplers)}


def template_caps(service: Service) -> Json:
    """Return what the chat template can show, by llama.cpp's names (common/jinja/caps.cpp)."""
    wants = wants_of(service.chat.template)
    return {
        "supports_tools": wants.tools,
        "supports_tool_calls": wants.tool_calls,
        "supports_system_role": wants.system,
        "supports_parallel_tool_calls": wants.tool_calls,
        "supports_preserve_reasoning": wants.keeps_reasoning,
        "supports_string_content": wants.strings,
        "supports_typed_content": wants.parts,
        "supports_object_arguments": wants.object_arguments,
    }


def x_model(service: Service) -> Json:
    """Return what the page tells of a model; n_expert is 0 for a dense one."""
    summary = service.summary
    return {
        "name": summary.name or service.name,
        "n_expert": summary.n_expert,
        "n_expert_used": service.options.load.n_expert_used or summary.n_expert_used,
        "n_layer": summary.n_layer,
        "expert_names": expert_names(summary),
        "n_params": summary.n_params,
        "n_params_active": summary.n_active_params,
        "n_ctx": service.engine.n_ctx_seq,
    }


def expert_names(summary: Summary) -> list[str]:
    """Return the experts' names, where a merge left them: general.base_model.N.name, behind the base's own."""
    count = summary.metadata.get("general.base_model.count")
    if not isinstance(count, int) or not 0 <= count - summary.n_expert <= 1 or not summary.n_expert:
        return []
    found = [summary.metadata.get(f"general.base_model.{number}.name") for number in range(count)]
    names = [name for name in found if isinstance(name, str)][-summary.n_expert :]
    return names if len(names) == summary.n_expert else []


def model_list(models: Models) -> Json:
    """Return /v1/models: OpenAI's list with llama.cpp's `meta` and `status`, and Ollama's list."""
    names = list(models.shelf.paths)
    return {
        "object": "list",
        "data": [model_entry(models, name) for name in names],
        "models": [{"name": name, "model": name, "type": "model", "capabilities": ["completion"]} for name in names],
    }


def model_entry(models: Models, name: str) -> Json:
    """Return one model of the list; what it is, is known once it is loaded."""
    service = models.loaded.get(name)
    entry: Json = {"id": name, "object": "model", "owned_by": "moe-gguf"}
    if service is None:
        return entry | {"created": 0, "status": {"value": "unloaded"}}
    model, summary = service.model, service.summary
    meta = {
        "n_vocab": model.n_vocab,
        "n_ctx": service.engine.n_ctx_seq,
        "n_ctx_train": model.n_ctx_train,
        "n_embd": summary.number(Keys.LLM.EMBEDDING_LENGTH),
        "n_params": summary.n_params,
        "size": summary.n_bytes,
        "ftype": summary.file_type or "",
    }
    return entry | {"created": service.loaded, "status": {"value": "loaded"}, "meta": meta}
