"""The conversion engine: one table of `Rule`s per model, used in both directions, strict.

A rule pairs a PyTorch key with a place in a JAX parameter. '{layer}' in the key stands for the
index on the leading (stacked) axis of the parameter; `slot` is the place inside one layer's array,
which is how separate q, k, v weights land in one fused kernel. Nothing is skipped: every source key
must match a rule or an allow-list entry with a reason, every element of every target must be filled.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """An invertible change of layout; `to_jax` may rely on the shape of its destination."""

    to_jax: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def _permute(*axes: int) -> Transform:
    inverse = tuple(int(i) for i in np.argsort(axes))
    return Transform(lambda x, shape: x.transpose(axes), lambda x: x.transpose(inverse))


IDENTITY = Transform(lambda x, shape: x, lambda x: x)
# torch [out, in] <-> jax [in, *out]
LINEAR = Transform(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(x.shape[0], -1).T)
FLATTEN_OUT = Transform(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1))
CONV3D = _permute(2, 3, 4, 1, 0)
CONV2D = _permute(2, 3, 1, 0)
OUT_LAST_5D = _permute(1, 2, 3, 4, 0)
QKV_PER_HEAD = _permute(2, 0, 1, 3)  # torch [3, N, D, H] <-> jax [D, 3, N, H]
POINTWISE3D = Transform(lambda x, shape: x[:, :, 0, 0, 0].T, lambda x: x.T[:, :, None, None, None])
POINTWISE2D = Transform(lambda x, shape: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
GAMMA3D = Transform(lambda x, shape: x[:, 0, 0, 0], lambda x: x[:, None, None, None])
GAMMA2D = Transform(lambda x, shape: x[:, 0, 0], lambda x: x[:, None, None])
DROP_LEADING = Transform(lambda x, shape: x[0], lambda x: x[None])


@dataclasses.dataclass(frozen=True)
class Rule:
    """`key` (PyTorch, may contain '{layer}') <-> `path` (JAX), see the module docstring."""

    key: str
    path: str
    transform: Transform = IDENTITY
    slot: tuple = ()

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.key

    def index(self, layer: int) -> tuple:
        return ((layer,) if self.stacked else ()) + self.slot


class ConversionError(ValueError):
    """All problems of one conversion in one message."""


def linear(key: str, path: str, *, bias: bool = True, slot: tuple = ()) -> list[Rule]:
    """Rules of a `Linear`: '{key}.weight', '{key}.bias' <-> '{path}/kernel', '{path}/bias'."""
    rules = [Rule(f"{key}.weight", f"{path}/kernel", LINEAR, (slice(None), *slot) if slot else ())]
    if bias:
        rules.append(Rule(f"{key}.bias", f"{path}/bias", FLATTEN_OUT, slot))
    return rules


def norm(key: str, path: str, *, bias: bool = False) -> list[Rule]:
    """Rules of an RMSNorm, or of an affine LayerNorm with `bias`."""
    rules = [Rule(f"{key}.weight", f"{path}/scale")]
    return [*rules, Rule(f"{key}.bias", f"{path}/bias")] if bias else rules


def prefixed(rules: list[Rule], key: str, path: str) -> list[Rule]:
    """The same rules with a prefix on both sides, for a model that is part of another."""
    return [dataclasses.replace(r, key=key + r.key, path=path + r.path) for r in rules]


def to_jax(
    rules: list[Rule],
    source: Mapping[str, np.ndarray],
    targets: Mapping[str, "jax.ShapeDtypeStruct"],  # noqa: F821  (any object with shape and dtype)
    ignore: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Fills every target parameter from `source`.

    Args:
      rules: the table of the model.
      source: PyTorch name -> array (memory-mapped arrays are read one at a time).
      targets: JAX path -> shape and dtype wanted.
      ignore: regex of source keys that are left out on purpose -> the reason.

    Raises:
      ConversionError: lists every unknown key, unfilled target and wrong shape.
    """
    problems: list[str] = []
    out = {path: np.empty(t.shape, t.dtype) for path, t in targets.items()}
    filled = {path: 0 for path in targets}
    patterns = [(_pattern(rule), rule) for rule in rules]
    for key in source:
        if any(re.fullmatch(pattern, key) for pattern in ignore or ()):
            continue
        hits = [(m, r) for p, r in patterns if (m := p.fullmatch(key)) and r.path in out]
        if len(hits) != 1:
            problems.append(f"source key {key!r} matches {len(hits)} rules, expected 1")
            continue
        match, rule = hits[0]
        layer = int(match["layer"]) if rule.stacked else 0
        if rule.stacked and layer >= out[rule.path].shape[0]:
            problems.append(f"source key {key!r}: the model has {out[rule.path].shape[0]} layers")
            continue
        place = out[rule.path][rule.index(layer)]
        value = np.asarray(source[key])
        expected = rule.transform.to_torch(place).shape
        if value.shape != expected:
            problems.append(f"source key {key!r} has shape {value.shape}, expected {expected}")
            continue
        out[rule.path][rule.index(layer)] = rule.transform.to_jax(value, place.shape)
        filled[rule.path] += place.size
    for path, size in filled.items():
        if size != out[path].size:
            keys = sorted(r.key for r in rules if r.path == path) or ["no rule"]
            problems.append(f"parameter {path!r}: {size} of {out[path].size} elements filled "
                            f"(from {', '.join(keys)})")
    if problems:
        raise ConversionError(
            f"{len(problems)} problems in the conversion, nothing was loaded:\n  "
            + "\n  ".join(problems)
        )
    return out


def to_torch(rules: list[Rule], params: Mapping[str, np.ndarray]
             ) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (PyTorch key, array) of every rule whose parameter exists, layer by layer.

    Raises:
      ConversionError: a parameter has no rule.
    """
    orphans = sorted(set(params) - {r.path for r in rules})
    if orphans:
        raise ConversionError(f"{len(orphans)} parameters have no PyTorch name: {orphans}")
    for rule in rules:
        if rule.path not in params:
            continue
        value = params[rule.path]
        for layer in range(value.shape[0] if rule.stacked else 1):
            part = np.asarray(value[rule.index(layer)])
            yield rule.key.format(layer=layer), np.ascontiguousarray(rule.transform.to_torch(part))


def _pattern(rule: Rule) -> re.Pattern:
    return re.compile(re.escape(rule.key).replace(r"\{layer\}", r"(?P<layer>\d+)"))
