"""Plans: where a model goes on devices of many sizes, held against llama.cpp's own simulation and real loads."""

import re
from dataclasses import replace
from typing import Any

import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.formats.errors import EngineError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.llamacpp import listening
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.model import Model
from moe_gguf.runner.placing.devices import Device
from moe_gguf.runner.placing.dryload import measure, read_allocations
from moe_gguf.runner.placing.memory import CPU, EXPERTS, ModelFacts, locate, predict, read_facts
from moe_gguf.runner.placing.placement import (
    arrange,
    complete_layers,
    evaluate,
    expert_pattern,
    fits,
    largest_context,
    measured,
    plan,
    plan_file,
    rank,
    room,
    with_budgets,
)
from moe_gguf.runner.placing.reasons import explain, flags, span

from ..tiny_moe import tensor_shapes, write_moe

GIB = 2**30
BIG: dict[str, Any] = {"n_layer": 32, "n_embd": 4096, "n_ff": 14336, "n_head": 32, "n_head_kv": 8, "n_vocab": 32000}
BIG["n_ctx_train"] = 32768


def ram(size: int) -> Device:
    return Device(CPU, "cpu", size, size, buffer_type=CPU)


def gpu(size: int, number: int = 0) -> Device:
    return Device(f"CUDA{number}", "gpu", size, size, buffer_type=f"CUDA{number}")


@pytest.fixture(scope="module")
def four_by_seven(tmp_path_factory):
    """A 4x7B at about Q4_K_M's size: a header with nothing behind it."""
    path = tmp_path_factory.mktemp("models") / "4x7B.gguf"
    return write_moe(path, n_expert=4, qtype=GGMLQuantizationType.Q4_K, weights=False, **BIG)


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "7B.gguf"
    return write_moe(path, n_expert=1, qtype=GGMLQuantizationType.Q4_K, weights=False, **BIG)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_moe(tmp_path_factory.mktemp("models") / "tiny.gguf")


def test_a_laptop_gets_the_dense_parts_on_its_gpu_and_the_experts_that_fit(four_by_seven):
    facts = read_facts(read_gguf(four_by_seven))
    placement = plan(facts, [ram(16 * GIB), gpu(8 * GIB)], LoadOptions(n_ctx=8192))
    for name, device in placement.tensors.items():
        if not re.search(EXPERTS, name) and name != "token_embd.weight":
            assert device == "CUDA0", name
    assert placement.tensors["token_embd.weight"] == CPU
    assert placement.memory["CUDA0"].kv == 8192 * 32 * 2 * 1024 * 2
    assert 10 < complete_layers(placement) < 20
    at_home = {
        int(name.split(".")[1]) for name, device in placement.tensors.items() if "_exps" in name and device == CPU
    }
    assert at_home == set(range(32 - complete_layers(placement)))
    one_layer = facts.layers[0].experts
    left = room(gpu(8 * GIB)) - placement.memory["CUDA0"].total
    assert 0 <= left < one_layer


def test_a_large_gpu_takes_everything_and_no_gpu_nothing(four_by_seven):
    facts = read_facts(read_gguf(four_by_seven))
    whole = plan(facts, [ram(16 * GIB), gpu(24 * GIB)], LoadOptions())
    assert complete_layers(whole) == 32
    assert not whole.options.tensor_overrides
    alone = plan(facts, [ram(24 * GIB)], LoadOptions())
    assert (alone.options.n_gpu_layers, alone.options.devices) == (0, ())
    assert set(alone.tensors.values()) == {CPU}


def test_a_small_gpu_takes_the_last_layers_without_experts(four_by_seven):
    placement = plan(read_facts(read_gguf(four_by_seven)), [ram(24 * GIB), gpu(GIB)], LoadOptions(n_ctx=8192))
    assert 1 < placement.options.n_gpu_layers < 33
    assert placement.tensors["output.weight"] == "CUDA0"
    assert placement.tensors["blk.0.attn_q.weight"] == CPU
    assert placement.tensors["blk.31.attn_q.weight"] == "CUDA0"
    assert complete_layers(placement) == 0


def test_a_dense_model_fills_a_gpu_with_whole_layers(seven):
    placement = plan(read_facts(read_gguf(seven)), [ram(16 * GIB), gpu(3 * GIB)], LoadOptions(n_ctx=4096))
    assert placement.options.n_gpu_layers == complete_layers(placement) + 1
    assert not placement.options.tensor_overrides


def test_two_gpus_get_consecutive_layers(four_by_seven):
    placement = plan(
        read_facts(read_gguf(four_by_seven)), [ram(8 * GIB), gpu(8 * GIB), gpu(12 * GIB, 1)], LoadOptions(n_ctx=8192)
    )
    assert placement.options.devices == ("CUDA1", "CUDA0")
    assert sum(placement.options.tensor_split) == 33
    order = [placement.tensors[f"blk.{i}.ffn_up_exps.weight"] for i in range(32)]
    assert order == sorted(order, key=["CUDA1", "CUDA0"].index)


def test_a_model_that_fits_nowhere_is_refused_in_one_line(four_by_seven):
    facts = read_facts(read_gguf(four_by_seven))
    with pytest.raises(EngineError, match=r"4x7B.gguf: too large for this machine: 13\.\d+ GB.*smaller quantization"):
        plan(facts, [ram(6 * GIB), gpu(4 * GIB)], LoadOptions())


def test_a_mapped_file_may_exceed_the_free_memory_but_not_all_of_it(seven):
    facts = read_facts(read_gguf(seven))
    busy = Device(CPU, "cpu", 2 * GIB, 8 * GIB)
    placement = plan(facts, [busy], LoadOptions(n_ctx=2048))
    assert "that are free now" in placement.notes[0]
    with pytest.raises(EngineError):
        plan(facts, [busy], LoadOptions(n_ctx=2048, use_mmap=False))


def test_numbers_of_a_refusal_do_not_contradict_themselves(seven, four_by_seven):
    weights = sum(read_facts(read_gguf(seven)).tensors.values())
    for path, devices in (
        (seven, [ram(weights + GIB // 2)]),
        (seven, [Device(CPU, "cpu", GIB // 8, 64 * GIB)]),
        (seven, [ram(weights), gpu(GIB // 4)]),
        (four_by_seven, [ram(8 * GIB), gpu(4 * GIB)]),
    ):
        with pytest.raises(EngineError) as refused:
            plan(read_facts(read_gguf(path)), devices, LoadOptions(n_ctx=4096))
        numbers = [float(number) for number in re.findall(r"(\d+\.\d\d) GB", str(refused.value))]
        assert numbers[0] > sum(numbers[1:]) or "in whole layers" in str(refused.value)


def test_a_context_nobody_asked_for_shrinks_and_says_so(four_by_seven):
    facts = read_facts(read_gguf(four_by_seven))
    weights = sum(facts.tensors.values())
    placement = plan(facts, [ram(weights + 9 * GIB // 8)], LoadOptions(use_mmap=False))
    assert placement.n_ctx < 8192
    assert "8192 do not fit" in placement.notes[0]
    with pytest.raises(EngineError, match="8192 tokens"):
        plan(facts, [ram(weights + 9 * GIB // 8)], LoadOptions(n_ctx=8192, use_mmap=False))


def test_quantized_caches_leave_room_for_experts(four_by_seven):
    facts = read_facts(read_gguf(four_by_seven))
    devices = [ram(16 * GIB), gpu(8 * GIB)]
    usual = plan(facts, devices, LoadOptions(n_ctx=32768))
    small = plan(facts, devices, LoadOptions(n_ctx=32768, cache_type_k="q8_0", cache_type_v="q8_0"))
    assert small.memory["CUDA0"].kv * 32 == usual.memory["CUDA0"].kv * 17
    assert complete_layers(small) > complete_layers(usual)
    home = plan(facts, devices, LoadOptions(n_ctx=32768, offload_kqv=False))
    assert home.memory["CUDA0"].kv == 0
    assert home.memory[CPU].kv == usual.memory["CUDA0"].kv


def test_impossible_caches_are_refused(tiny):
    facts = read_facts(read_gguf(tiny))
    with pytest.raises(EngineError, match="not a type for the KV cache"):
        predict(facts, LoadOptions(cache_type_k="q9"), [])
    with pytest.raises(EngineError, match="needs flash attention"):
        predict(facts, LoadOptions(cache_type_v="q8_0", flash_attn="off"), [])
    with pytest.raises(EngineError, match="heads of 48"):
        predict(replace(facts, k_head=48), LoadOptions(cache_type_k="iq4_nl"), [])


def made_facts(n_layer: int, dense: int, experts: int, output: int, kv: int, tied: bool) -> ModelFacts:
    tensors = {"token_embd.weight": output, "output_norm.weight": 4096} | ({} if tied else {"output.weight": output})
    for i in range(n_layer):
        tensors[f"blk.{i}.attn_q.weight"] = dense + i
        if experts:
            tensors[f"blk.{i}.ffn_up_exps.weight"] = experts + i
        else:
            tensors[f"blk.{i}.ffn_up.weight"] = dense
    return ModelFacts("made", tensors, (kv,) * n_layer, (kv,) * n_layer, kv, kv, 4096, 64, 4, 128, 2, 100)


@settings(max_examples=150, deadline=None)
@given(
    n_layer=st.integers(1, 40),
    dense=st.integers(1, 10**8),
    experts=st.one_of(st.just(0), st.integers(1, 10**9)),
    output=st.integers(0, 10**8),
    kv=st.integers(1, 4096),
    tied=st.booleans(),
    sizes=st.lists(st.integers(0, 2 * 10**10), max_size=3),
    memory=st.integers(10**6, 4 * 10**10),
    mmap=st.booleans(),
    n_ctx=st.sampled_from([None, 256, 4096]),
)
def test_no_plan_needs_more_than_any_device_has(n_layer, dense, experts, output, kv, tied, sizes, memory, mmap, n_ctx):
    facts = made_facts(n_layer, dense, experts, output, kv, tied)
    devices = [ram(memory), *(gpu(size, i) for i, size in enumerate(sizes))]
    wish = LoadOptions(n_ctx=n_ctx, use_mmap=mmap)
    try:
        placement = plan(facts, devices, wish)
    except EngineError as error:
        assert "too large" in str(error)
        assert not arrange(facts, rank(devices), replace(wish, n_ctx=n_ctx or 512), predict)
        return
    for device in rank(devices):
        assert fits(device, placement.memory, placement.options, devices)
    placed = sum(memory.weights for memory in placement.memory.values())
    twice = facts.tied_bytes if placement.options.n_gpu_layers > 0 else 0
    assert placed == sum(facts.tensors.values()) + twice
    assert sum(memory.kv for memory in placement.memory.values()) == placement.n_ctx * 4 * kv * n_layer
    assert placement.tensors == locate(facts, placement.options, placement.options.devices or ())
    assert sum(group.n_bytes for group in explain(placement)) == sum(m.total for m in placement.memory.values())


@settings(max_examples=150, deadline=None)
@given(
    n_layer=st.integers(1, 12),
    dense=st.integers(1, 10**8),
    experts=st.integers(10**6, 10**9),
    size=st.integers(10**7, 10**10),
    memory=st.integers(10**7, 10**10),
)
def test_the_plan_is_as_good_as_trying_every_number_of_layers(n_layer, dense, experts, size, memory):
    facts = made_facts(n_layer, dense, experts, 10**6, 64, False)
    devices = [ram(memory), gpu(size)]
    wish = LoadOptions(n_ctx=512, use_mmap=False, devices=("CUDA0",), n_gpu_layers=n_layer + 1)
    possible = []
    for n_home in range(n_layer + 1):
        overrides = ((expert_pattern(0, n_home), CPU),) if n_home else ()
        tried = evaluate(facts, devices, replace(wish, tensor_overrides=overrides))
        if all(fits(device, tried.memory, tried.options, devices) for device in devices):
            possible.append(n_layer - n_home)
    if possible:
        assert complete_layers(plan(facts, devices, wish)) == max(possible)


@given(start=st.integers(0, 130), length=st.integers(1, 130))
def test_the_pattern_of_a_range_of_layers_matches_these_alone(start, length):
    pattern = re.compile(expert_pattern(start, start + length))
    assert "," not in pattern.pattern
    matched = {i for i in range(300) if pattern.search(f"blk.{i}.ffn_gate_exps.weight")}
    assert matched == set(range(start, start + length))
    assert not any(pattern.search(f"blk.{i}.ffn_gate_shexp.weight") for i in range(300))


def test_the_largest_context_fits_and_one_step_more_does_not(seven):
    facts, order = read_facts(read_gguf(seven)), rank([ram(6 * GIB)])
    wish = LoadOptions(use_mmap=False)
    largest = largest_context(facts, order, wish, predict)
    assert 512 < largest < facts.n_ctx_train
    assert arrange(facts, order, replace(wish, n_ctx=largest), predict)
    assert not arrange(facts, order, replace(wish, n_ctx=largest + 256), predict)


@pytest.mark.parametrize("n_expert", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "options",
    [
        LoadOptions(n_ctx=4096, devices=()),
        LoadOptions(n_ctx=32768, devices=(), n_ubatch=256),
        LoadOptions(n_ctx=4096, devices=(), flash_attn="off"),
        LoadOptions(n_ctx=8192, devices=(), n_expert_used=1),
        LoadOptions(n_ctx=8192, devices=(), cache_type_k="q8_0", cache_type_v="q4_0"),
    ],
    ids=str,
)
def test_predictions_are_within_3_percent_of_llamacpps_own(tmp_path, n_expert, options):
    if n_expert == 1:
        options = replace(options, n_expert_used=None)
    path = tmp_path / "big.gguf"
    write_moe(path, n_expert=n_expert, qtype=GGMLQuantizationType.Q4_K, weights=False, **BIG)
    file = read_gguf(path)
    predicted = predict(read_facts(file), options, [])[CPU]
    compute, cache = measure(file, options)
    assert predicted.kv == cache
    assert predicted.total == pytest.approx(predicted.weights + cache + compute[CPU], rel=0.03)
    assert predicted.compute == pytest.approx(compute[CPU], rel=0.08)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_planned_is_what_a_load_allocates(tmp_path, tied):
    path = write_moe(tmp_path / "tiny.gguf", tied=tied, n_expert=3)
    file = read_gguf(path)
    options = LoadOptions(n_ctx=2048, use_mmap=False, devices=(), n_threads=1)
    placement = measured(file, evaluate(read_facts(file), [ram(GIB)], options))
    log: list[str] = []
    with listening(lambda _, text: log.append(text)), Model(path, options) as model, Engine(model, options):
        allocated = read_allocations("".join(log))[CPU]
    planned = placement.memory[CPU]
    for mine, theirs in zip((planned.weights, planned.kv, planned.compute), allocated.values(), strict=True):
        assert mine == pytest.approx(theirs, rel=0.03)


def test_a_plan_checked_by_llamacpp_keeps_to_a_tight_budget(tiny):
    file = read_gguf(tiny)
    facts = read_facts(file)
    need = plan_file(file, facts, [ram(GIB)], LoadOptions(n_ctx=1024, use_mmap=False)).memory[CPU].total
    tight = [ram(int(need / 0.94) + 1)]
    assert plan_file(file, facts, tight, LoadOptions(n_ctx=1024, use_mmap=False)).memory[CPU].total <= room(tight[0])
    with pytest.raises(EngineError, match="too large"):
        plan_file(file, facts, [ram(int(need * 0.9))], LoadOptions(n_ctx=1024, use_mmap=False))


def test_fewer_experts_per_token_need_smaller_buffers(tiny):
    file = read_gguf(tiny)
    one, _ = measure(file, LoadOptions(n_ctx=512, devices=(), n_expert_used=1))
    four, _ = measure(file, LoadOptions(n_ctx=512, devices=(), n_expert_used=4))
    assert one[CPU] < four[CPU]
    with pytest.raises(EngineError, match="cannot use 5 of its 4 experts"):
        measure(file, LoadOptions(n_expert_used=5))


def test_budgets_cap_devices_and_make_up_hypothetical_ones():
    real = [ram(16 * GIB), gpu(8 * GIB), gpu(6 * GIB, 1)]
    assert [d.free_bytes // GIB for d in with_budgets(real, [4 * GIB], None)] == [16, 4, 4]
    assert [d.free_bytes // GIB for d in with_budgets(real, [4 * GIB, 9 * GIB], 2 * GIB)] == [2, 4, 6]
    made = with_budgets([ram(16 * GIB)], [8 * GIB, 4 * GIB], 32 * GIB, hypothetical=True)
    assert [(d.name, d.free_bytes // GIB) for d in made] == [(CPU, 32), ("GPU0", 8), ("GPU1", 4)]
    with pytest.raises(EngineError, match="names 3 amounts"):
        with_budgets(real, [GIB] * 3, None)


def test_flags_say_the_same_as_the_plan(four_by_seven):
    facts = read_facts(read_gguf(four_by_seven))
    placement = plan(facts, [ram(16 * GIB), gpu(8 * GIB)], LoadOptions(n_ctx=8192, cache_type_k="q8_0"))
    words = flags(placement)
    assert words[:4] == ["-c", "8192", "-ngl", "33"]
    pattern = words[words.index("-ot") + 1]
    assert pattern.endswith(")exps=CPU") and pattern.startswith("blk\\.(")
    assert words[words.index("-ctk") + 1] == "q8_0"
    alone = flags(plan(facts, [ram(24 * GIB)], LoadOptions(n_ctx=512, offload_kqv=False)))
    assert alone == ["-c", "512", "-ngl", "0", "-nkvo"]


def test_layers_are_named_as_ranges():
    assert span([3, 1, 2, 7, 9, 10]) == "1-3, 7, 9-10"


def test_the_made_models_have_the_tensors_that_facts_expect(tiny):
    facts = read_facts(read_gguf(tiny))
    assert set(facts.tensors) == set(tensor_shapes(4, 256, 512, 4, 128, 512))
    assert (facts.n_layer, facts.n_expert_used, facts.n_vocab, facts.k_rows) == (4, 2, 512, (128,) * 4)
