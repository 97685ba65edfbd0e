"""Qwen3-VL: transformers state dict <-> `motus_jax.models.qwen3_vl.Qwen3VL`."""

from collections.abc import Mapping

import numpy as np

from convert.mapping import OUT_LAST_5D, ConversionError, Rule, linear, norm

_TEXT, _LAYER = "model.language_model", "model.language_model.layers.{layer}"
_VISUAL, _BLOCK = "model.visual", "model.visual.blocks.{layer}"
LM_HEAD, EMBEDDING = "lm_head.weight", f"{_TEXT}.embed_tokens.weight"


def _merger(key: str, path: str) -> list[Rule]:
    return [
        *norm(f"{key}.norm", f"{path}/norm", bias=True),
        *linear(f"{key}.linear_fc1", f"{path}/mlp/layers/0"),
        *linear(f"{key}.linear_fc2", f"{path}/mlp/layers/1"),
    ]


RULES: list[Rule] = [
    Rule(f"{_VISUAL}.patch_embed.proj.weight", "visual/patch_kernel", OUT_LAST_5D),
    Rule(f"{_VISUAL}.patch_embed.proj.bias", "visual/patch_bias"),
    Rule(f"{_VISUAL}.pos_embed.weight", "visual/positions/table"),
    *norm(f"{_BLOCK}.norm1", "visual/blocks/norm1", bias=True),
    *linear(f"{_BLOCK}.attn.qkv", "visual/blocks/qkv"),
    *linear(f"{_BLOCK}.attn.proj", "visual/blocks/out"),
    *norm(f"{_BLOCK}.norm2", "visual/blocks/norm2", bias=True),
    *linear(f"{_BLOCK}.mlp.linear_fc1", "visual/blocks/mlp/layers/0"),
    *linear(f"{_BLOCK}.mlp.linear_fc2", "visual/blocks/mlp/layers/1"),
    *_merger(f"{_VISUAL}.merger", "visual/merger"),
    *_merger(f"{_VISUAL}.deepstack_merger_list.{{layer}}", "visual/deepstack"),
    Rule(EMBEDDING, "language/embedding/table"),
    *norm(f"{_LAYER}.input_layernorm", "language/blocks/norm1"),
    *linear(f"{_LAYER}.self_attn.q_proj", "language/blocks/q", bias=False),
    *linear(f"{_LAYER}.self_attn.k_proj", "language/blocks/kv", bias=False, slot=(0,)),
    *linear(f"{_LAYER}.self_attn.v_proj", "language/blocks/kv", bias=False, slot=(1,)),
    *norm(f"{_LAYER}.self_attn.q_norm", "language/blocks/norm_q"),
    *norm(f"{_LAYER}.self_attn.k_norm", "language/blocks/norm_k"),
    *linear(f"{_LAYER}.self_attn.o_proj", "language/blocks/out", bias=False),
    *norm(f"{_LAYER}.post_attention_layernorm", "language/blocks/norm2"),
    *linear(f"{_LAYER}.mlp.gate_proj", "language/blocks/gate_up", bias=False, slot=(0,)),
    *linear(f"{_LAYER}.mlp.up_proj", "language/blocks/gate_up", bias=False, slot=(1,)),
    *linear(f"{_LAYER}.mlp.down_proj", "language/blocks/down", bias=False),
    *norm(f"{_TEXT}.norm", "language/norm"),
    *linear("lm_head", "lm_head", bias=False),
]


def ignore_tied(source: Mapping[str, np.ndarray], tied: bool, prefix: str = "") -> dict[str, str]:
    """`mapping.to_jax(ignore=...)` for a source that may store a tied LM head again.

    Motus checkpoints do, files written by transformers do not.

    Raises:
      ConversionError: the model is tied but the two tensors differ.
    """
    head = prefix + LM_HEAD
    if not tied or head not in source:
        return {}
    if not np.array_equal(source[head], source[prefix + EMBEDDING]):
        raise ConversionError(
            f"{head!r} differs from the token embedding although the config ties them; set "
            "tie_word_embeddings to false to keep both"
        )
    return {head.replace(".", r"\."): "tied to the token embedding"}
