"""Motus: canonical keys of the original's `module` state dict <-> `motus_jax.policies.motus.Motus`.

The state dict holds every weight several times, because the helper modules of the original register the
same networks again; `canonical` keeps one name per weight and checks that the copies agree.
"""

from collections.abc import Mapping

import numpy as np

from convert import qwen3_vl, wan
from convert.mapping import (
    DROP_LEADING,
    QKV_PER_HEAD,
    ConversionError,
    Rule,
    linear,
    norm,
    prefixed,
)
from motus_jax.policies.motus import Config

ALIASES = {
    "video_module.video_model.": "video_model.",
    "action_module.video_model.": "video_model.",
    "action_module.vlm_model.": "vlm_model.",
    "action_module.action_expert.": "action_expert.",
    "und_module.vlm_model.": "vlm_model.",
    "und_module.und_expert.": "und_expert.",
}

_RECOMPUTED = {
    r"action_expert\.input_encoder\.pos_embedding": "a fixed table, recomputed from its shape",
    r"vlm_model\..*\.inv_freq": "rotary frequencies, recomputed from the config",
}


def _mlp(key: str, path: str, layers: int) -> list[Rule]:
    """An `Mlp` whose PyTorch indices count the activations too (0, 2, 4, ...)."""
    return [rule for i in range(layers)
            for rule in linear(f"{key}.{2 * i}", f"{path}/layers/{i}")]


def _expert_block(key: str, name: str) -> list[Rule]:
    return [
        Rule(f"{key}.wan_{name}_qkv", "blocks/qkv/kernel", QKV_PER_HEAD),
        *norm(f"{key}.wan_{name}_norm_q", "blocks/norm_q"),
        *norm(f"{key}.wan_{name}_norm_k", "blocks/norm_k"),
        *linear(f"{key}.wan_{name}_o", "blocks/out", bias=False),
        *_mlp(f"{key}.ffn", "blocks/ffn", 2),
    ]


ACTION_RULES: list[Rule] = [
    *_mlp("input_encoder.state_encoder", "state", 3),
    *_mlp("input_encoder.action_encoder", "action", 3),
    Rule("registers", "registers", DROP_LEADING),
    *_mlp("time_embedding", "time/mlp", 2),
    *linear("time_projection.1", "time/project"),
    Rule("blocks.{layer}.modulation", "blocks/modulation/table", DROP_LEADING),
    *_expert_block("blocks.{layer}", "action"),
    Rule("decoder.modulation", "head_modulation/table", DROP_LEADING),
    *linear("decoder.action_head.0", "head_linear"),
]


def und_rules(adapter_layers: int) -> list[Rule]:
    """Rules of the understanding expert; an adapter of one layer has no index in its keys."""
    if adapter_layers == 1:
        adapter = linear("vlm_adapter", "adapter/layers/0")
    else:
        adapter = _mlp("vlm_adapter", "adapter", adapter_layers)
    return [*adapter, *_expert_block("blocks.{layer}", "und")]


def rules(config: Config) -> list[Rule]:
    """The whole Motus module (VAE and T5 are files of their own)."""
    return [
        *prefixed(wan.RULES, "video_model.wan_model.", "wan/"),
        *prefixed(ACTION_RULES, "action_expert.", "action/"),
        *prefixed(und_rules(config.und.adapter_layers), "und_expert.", "und/"),
        *prefixed(qwen3_vl.RULES, "vlm_model.", "vlm/"),
    ]


def ignored(module: Mapping[str, np.ndarray], config: Config) -> dict[str, str]:
    """Keys of a canonical state dict that have no parameter, with the reason."""
    return _RECOMPUTED | qwen3_vl.ignore_tied(module, config.vlm.tied, "vlm_model.")


def canonical(module: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One entry per weight under its canonical name.

    Raises:
      ConversionError: two copies of a weight differ.
    """
    out: dict[str, np.ndarray] = {}
    for key, value in module.items():
        name = next((new + key[len(old):] for old, new in ALIASES.items() if key.startswith(old)),
                    key)
        if name in out and not np.array_equal(out[name], value):
            raise ConversionError(f"{key!r} and the other copy of {name!r} differ; the checkpoint is "
                                  "damaged or was edited")
        out.setdefault(name, value)
    return out
