"""Wan2.2 DiT: PyTorch `WanModel` keys (825 for the 5B model) <-> `motus_jax.models.wan.Wan`."""

from convert.mapping import (
    CONV3D,
    DROP_LEADING,
    Rule,
    linear,
    norm,
)


def _attention(key: str, path: str) -> list[Rule]:
    """q, k, v of one attention, fused into `{path}qkv`."""
    parts = [linear(f"{key}.{name}", f"{path}qkv", slot=(i,)) for i, name in enumerate("qkv")]
    return [rule for part in parts for rule in part]


RULES: list[Rule] = [
    Rule("patch_embedding.weight", "patch_kernel", CONV3D),
    Rule("patch_embedding.bias", "patch_bias"),
    *linear("text_embedding.0", "text/layers/0"),
    *linear("text_embedding.2", "text/layers/1"),
    *linear("time_embedding.0", "time/mlp/layers/0"),
    *linear("time_embedding.2", "time/mlp/layers/1"),
    *linear("time_projection.1", "time/project"),
    Rule("blocks.{layer}.modulation", "blocks/modulation/table", DROP_LEADING),
    *_attention("blocks.{layer}.self_attn", "blocks/"),
    *norm("blocks.{layer}.self_attn.norm_q", "blocks/norm_q"),
    *norm("blocks.{layer}.self_attn.norm_k", "blocks/norm_k"),
    *linear("blocks.{layer}.self_attn.o", "blocks/out"),
    *norm("blocks.{layer}.norm3", "blocks/cross/norm", bias=True),
    *linear("blocks.{layer}.cross_attn.q", "blocks/cross/q"),
    *linear("blocks.{layer}.cross_attn.k", "blocks/cross/kv", slot=(0,)),
    *linear("blocks.{layer}.cross_attn.v", "blocks/cross/kv", slot=(1,)),
    *norm("blocks.{layer}.cross_attn.norm_q", "blocks/cross/norm_q"),
    *norm("blocks.{layer}.cross_attn.norm_k", "blocks/cross/norm_k"),
    *linear("blocks.{layer}.cross_attn.o", "blocks/cross/out"),
    *linear("blocks.{layer}.ffn.0", "blocks/ffn/layers/0"),
    *linear("blocks.{layer}.ffn.2", "blocks/ffn/layers/1"),
    Rule("head.modulation", "head_modulation/table", DROP_LEADING),
    *linear("head.head", "head_linear"),
]
