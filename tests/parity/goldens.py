"""The golden tensors: where they are, how they are read, how close is close.

`MOTUS_GOLDENS` names the directory (default: the trimmed copy in `tests/goldens`). Every dimension
is read from its json and tensor files.

Tolerances: the recorded tensors are float32 results of the original code, which differ from the
same code in float64 by a relative L2 error of 2e-7 to 8e-7 (each directory's `f32_vs_f64`). Two
correct float32 implementations therefore differ by about 1e-6; 3e-6 leaves room for another order
of summation and is still below the smallest deliberate mistake on record (4e-6, a wrong epsilon).
"""

import json
import os
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

ACTIVATION = 3e-6
LOSS = 3e-6
GRADIENT = 1e-5

_HERE = pathlib.Path(__file__).resolve().parent


def root() -> pathlib.Path:
    """Directory of the goldens."""
    path = pathlib.Path(os.environ.get("MOTUS_GOLDENS") or _HERE.parent / "goldens")
    if not (path / "INDEX.json").exists():
        raise FileNotFoundError(
            f"MOTUS_GOLDENS={path} holds no INDEX.json; point it at a directory of golden tensors"
        )
    return path


def load(name: str) -> dict[str, np.ndarray]:
    """Tensors of one `.safetensors` file, by its path below the root."""
    return load_file(find(name))


def read_json(name: str) -> dict:
    return json.loads(find(name).read_text())


def trimmed() -> bool:
    """Whether this directory is a small copy made by `scripts/trim_goldens.py`."""
    return json.loads((root() / "INDEX.json").read_text()).get("trimmed") is True


def find(name: str) -> pathlib.Path:
    """Path of a file below the root; skips the test if a trimmed copy left it out."""
    path = root() / name
    if not path.exists() and trimmed():
        pytest.skip(f"{name} is not in the trimmed goldens", allow_module_level=True)
    return path


def rel_l2(actual, expected) -> float:
    """||actual - expected|| / ||expected|| in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30))


def assert_close(actual, expected, *, tol: float = ACTIVATION, name: str = "") -> None:
    """Relative L2 error of at most `tol`, everything finite."""
    assert np.isfinite(np.asarray(actual, np.float64)).all(), f"{name}: not finite"
    error = rel_l2(actual, expected)
    assert error <= tol, f"{name}: relative L2 error {error:.2e} > {tol:.0e}"


def load_torch(path: str) -> dict:
    """A PyTorch checkpoint file below the root, through the project's own reader."""
    from motus_jax import torch_file

    return torch_file.load(find(path))


jax.config.update("jax_default_matmul_precision", "highest")
