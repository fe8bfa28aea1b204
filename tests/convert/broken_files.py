"""Checkpoints whose files are broken or hostile: what is done to a good one, and what the refusal must name."""

from .damage import Break, Words, cut, entry, leave_a_hole, raw, rehead, retouch, sharded

INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"
Q = "model.layers.0.self_attn.q_proj.weight"

BROKEN_FILES: dict[str, tuple[Break, Words]] = {
    "no such folder": (lambda s: s.rename(s.with_name("gone")), ("source",)),
    "no config": (lambda s: (s / "config.json").unlink(), ("config.json",)),
    "no weights": (lambda s: (s / "model.safetensors").unlink(), ("model.safetensors",)),
    "safetensors by the name of PyTorch's": (
        lambda s: (s / "model.safetensors").rename(s / "pytorch_model.bin"),
        ("pytorch_model", "not a PyTorch checkpoint"),
    ),
    "no tokenizer": (lambda s: (s / "tokenizer.json").unlink(), ("tokenizer",)),
    # the file's frame
    "empty file": (lambda s: (s / "model.safetensors").write_bytes(b""), ("model.safetensors", "truncated")),
    "seven bytes": (lambda s: (s / "model.safetensors").write_bytes(b"1234567"), ("model.safetensors", "truncated")),
    "truncated by a byte": (cut("model.safetensors", -1), ("model.safetensors", "truncated")),
    "truncated in the header": (cut("model.safetensors", 100), ("model.safetensors", "truncated")),
    "header of 2 GB": (raw(2 << 30, b"{}"), ("model.safetensors", str(2 << 30))),
    "header of 2^64-1 bytes": (raw(2**64 - 1, b"{}"), ("model.safetensors", str(2**64 - 1))),
    "header of no bytes": (raw(0, b""), ("model.safetensors", "header")),
    "not JSON": (raw(7, b"{'a': 1"), ("model.safetensors", "JSON")),
    "not UTF-8": (raw(4, b'{"\xff"'), ("model.safetensors", "JSON")),
    "a JSON list": (raw(2, b"[]"), ("model.safetensors", "object")),
    "JSON nested 100,000 deep": (raw(100_000, b"[" * 100_000), ("model.safetensors", "nested")),
    "a number of 10,000 digits": (raw(10_006, b'{"a":' + b"9" * 10_000 + b"}"), ("model.safetensors",)),
    "the same tensor twice": (raw(15, b'{"a":{},"a":{}}'), ("model.safetensors", "'a'", "twice")),
    "a trailing byte": (
        lambda s: (s / "model.safetensors").open("ab").write(b"x") and None,
        ("model.safetensors", "no tensor"),
    ),
    # entries of the header
    "an entry that is a number": (rehead(lambda h: h.__setitem__(Q, 3)), (Q,)),
    "an entry that is null": (rehead(lambda h: h.__setitem__(Q, None)), (Q,)),
    "no dtype": (rehead(lambda h: h[Q].pop("dtype") and None), (Q, "dtype")),
    "unknown dtype": (entry("dtype", "F4_E2M1"), ("model.norm.weight", "F4_E2M1")),
    "a dtype that weights cannot have": (entry("dtype", "I16"), ("model.norm.weight", "I16")),
    "a dtype that is a list": (entry("dtype", []), ("model.norm.weight", "dtype")),
    "a dtype that is an object": (entry("dtype", {}), ("model.norm.weight", "dtype")),
    "a dtype of another size": (entry("dtype", "F32"), ("model.norm.weight", "128")),
    "a shape that is a number": (entry("shape", 32), ("model.norm.weight", "shape")),
    "a shape that is text": (entry("shape", "32"), ("model.norm.weight", "shape")),
    "a negative shape": (entry("shape", [-1, -32]), ("model.norm.weight", "shape")),
    "a fractional shape": (entry("shape", [32.0]), ("model.norm.weight", "shape")),
    "a shape of booleans": (entry("shape", [True, 32]), ("model.norm.weight", "shape")),
    "a shape that overflows": (entry("shape", [2**62, 4]), ("model.norm.weight",)),
    "a shape beyond printing": (entry("shape", [10**18] * 300), ("model.norm.weight",)),
    "a shape of null": (entry("shape", [None]), ("model.norm.weight",)),
    "no weights in a shape": (entry("shape", [0, 32]), ("model.norm.weight",)),
    "offsets swapped": (rehead(lambda h: h[Q]["data_offsets"].reverse()), (Q,)),
    "one offset": (rehead(lambda h: h[Q]["data_offsets"].pop() and None), (Q,)),
    "offsets as text": (entry("data_offsets", "ab"), ("model.norm.weight",)),
    "offsets beyond the file": (entry("data_offsets", [10**15, 10**15 + 64]), ("model.norm.weight",)),
    "negative offsets": (entry("data_offsets", [-64, 0]), ("model.norm.weight",)),
    "infinite offsets": (entry("data_offsets", [float("-inf"), float("inf")]), ("model.norm.weight",)),
    "overlap": (entry("data_offsets", [0, 64]), ("overlaps",)),
    "hole": (leave_a_hole, ("hole",)),
    "not a tensor at all": (rehead(lambda h: {"__metadata__": {}}), ("model.safetensors",)),
    # shards
    "missing shard": (sharded(lambda s: (s / SHARD).unlink()), (SHARD, "missing")),
    "truncated shard": (sharded(cut(SHARD, -1)), (SHARD, "truncated")),
    "shards without an index, one missing": (
        sharded(lambda s: ((s / SHARD).unlink(), (s / INDEX).unlink())),
        ("2 of 3", INDEX),
    ),
    "index is not JSON": (sharded(cut(INDEX, -1)), (INDEX, "JSON")),
    "index without weight_map": (sharded(retouch(INDEX, lambda i: i.pop("weight_map"))), (INDEX, "weight_map")),
    "weight_map is a list": (sharded(retouch(INDEX, lambda i: i.update(weight_map=[1]))), (INDEX, "weight_map")),
    "index does not name a tensor": (sharded(retouch(INDEX, lambda i: i["weight_map"].pop(Q))), (INDEX, Q)),
    "index names another shard": (sharded(retouch(INDEX, lambda i: i["weight_map"].update({Q: SHARD}))), (INDEX, Q)),
    "index leaves the folder": (
        sharded(retouch(INDEX, lambda i: i["weight_map"].update({Q: "../" + SHARD}))),
        (INDEX, "../" + SHARD),
    ),
    "index names a number": (sharded(retouch(INDEX, lambda i: i["weight_map"].update({Q: 2}))), (INDEX,)),
}
