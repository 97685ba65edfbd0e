"""umT5 encoder: `models_t5_umt5-xxl-enc-bf16.pth` (242 keys) <-> `motus_jax.models.umt5.UMT5`."""

from convert.mapping import Rule, linear, norm

_BLOCK = "blocks.{layer}"

RULES: list[Rule] = [
    Rule("token_embedding.weight", "embedding/table"),
    *norm(f"{_BLOCK}.norm1", "blocks/norm1"),
    *linear(f"{_BLOCK}.attn.q", "blocks/qkv", bias=False, slot=(0,)),
    *linear(f"{_BLOCK}.attn.k", "blocks/qkv", bias=False, slot=(1,)),
    *linear(f"{_BLOCK}.attn.v", "blocks/qkv", bias=False, slot=(2,)),
    *linear(f"{_BLOCK}.attn.o", "blocks/out", bias=False),
    Rule(f"{_BLOCK}.pos_embedding.embedding.weight", "blocks/bias/table"),
    *norm(f"{_BLOCK}.norm2", "blocks/norm2"),
    *linear(f"{_BLOCK}.ffn.gate.0", "blocks/gate_fc1", bias=False, slot=(0,)),
    *linear(f"{_BLOCK}.ffn.fc1", "blocks/gate_fc1", bias=False, slot=(1,)),
    *linear(f"{_BLOCK}.ffn.fc2", "blocks/fc2", bias=False),
    *norm("norm", "norm"),
]
