"""The canonical sample: what every source yields and every policy consumes.

Letters: F target frames, H W frame size, K actions, A action width, S state width, L_t text length,
D_t text width, L_u VLM tokens, h w VLM image size, D_u VLM width, Z [T', H/16, W/16, C] latents.
"""

import dataclasses
from typing import NamedTuple

import numpy as np


class Field(NamedTuple):
    dims: tuple[str, ...]
    dtype: np.dtype
    meaning: str


def _field(dims: str, dtype: str, meaning: str) -> Field:
    return Field(tuple(dims.split()), np.dtype(dtype), meaning)


FIELDS = {
    "frames": _field("1+F H W 3", "uint8", "RGB; the condition frame, then the target frames"),
    "state": _field("S", "float32", "joint positions at the condition frame"),
    "actions": _field("K A", "float32", "absolute joint positions at future frames"),
    "action_valid": _field("K", "bool", "False where the episode had ended (last action repeated)"),
    "text": _field("L_t D_t", "float32", "umT5 embedding of the instruction, zero-padded"),
    "text_len": _field("", "int32", "rows of `text` that are not padding"),
    "vlm_tokens": _field("L_u", "int32", "prompt with expanded image pads; 0 on the right"),
    "vlm_valid": _field("L_u", "bool", "False on the padding of `vlm_tokens`"),
    "vlm_image": _field("h w 3", "uint8", "RGB on the VLM's grid; normalised on the device"),
    "latents": _field("Z", "float32", "cached latents of `frames`, which are left out"),
    "vlm_features": _field("L_u D_u", "float32", "cached; `vlm_tokens`, `vlm_image` are left out"),
    "dataset_id": _field("", "int32", "index of the dataset in the mixture"),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The numbers behind the letters of `FIELDS`; data without states or texts has None there."""

    frames: int  # F
    height: int  # H
    width: int  # W
    actions: int  # K
    action_dim: int  # A
    state_dim: int | None  # S
    text_length: int  # L_t
    text_dim: int | None  # D_t
    vlm_length: int  # L_u
    vlm_height: int  # h
    vlm_width: int  # w
    latents: tuple[int, ...] | None = None  # Z; None without a cache
    feature_dim: int | None = None  # D_u; None without a cache

    @property
    def fields(self) -> dict[str, Field]:
        """Those of `FIELDS` that the samples have."""
        absent = {
            "state": self.state_dim is None,
            "text": self.text_dim is None,
            "text_len": self.text_dim is None,
            "frames": self.latents is not None,
            "latents": self.latents is None,
            "vlm_tokens": self.feature_dim is not None,
            "vlm_image": self.feature_dim is not None,
            "vlm_features": self.feature_dim is None,
        }
        return {name: f for name, f in FIELDS.items() if not absent.get(name)}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one sample's array `name`."""
        letters = {
            "1+F": 1 + self.frames,
            "H": self.height,
            "W": self.width,
            "K": self.actions,
            "A": self.action_dim,
            "S": self.state_dim,
            "L_t": self.text_length,
            "D_t": self.text_dim,
            "L_u": self.vlm_length,
            "h": self.vlm_height,
            "w": self.vlm_width,
            "3": 3,
            "D_u": self.feature_dim,
        }
        if name == "latents":
            return tuple(self.latents)
        return tuple(letters[dim] for dim in FIELDS[name].dims)


def batch_spec(sizes: Sizes, batch_size: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Name -> (shape, dtype) of a batch."""
    return {name: ((batch_size, *sizes.shape(name)), f.dtype) for name, f in sizes.fields.items()}


def check(sample: dict[str, np.ndarray], sizes: Sizes) -> None:
    """Raises ValueError, naming the field, unless `sample` is one sample of these sizes."""
    if sample.keys() != sizes.fields.keys():
        raise ValueError(
            f"the sample has fields {sorted(sample)}, expected {sorted(sizes.fields)}; "
            "return exactly these from the source"
        )
    for name, field in sizes.fields.items():
        value, shape = np.asarray(sample[name]), sizes.shape(name)
        if value.dtype != field.dtype or value.shape != shape:
            raise ValueError(
                f"sample field {name!r} is {value.dtype}{list(value.shape)}, expected "
                f"{field.dtype}{list(shape)}; make the source and the config agree"
            )


class BadEpisode(Exception):
    """An episode that cannot be used: `path` of the offending file and the `reason`, one line."""

    def __init__(self, path, reason: str):
        self.path, self.reason = str(path), " ".join(reason.split())
        super().__init__(self.path, self.reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
