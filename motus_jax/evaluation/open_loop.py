"""Held-out metrics without a robot, beside the baselines that make them readable."""

from collections.abc import Iterable

import jax
import numpy as np


def action_errors(predicted: np.ndarray, batch: dict) -> dict[str, float]:
    """Mean absolute error of sampled actions over valid steps, and of two trivial policies.

    Args:
      predicted: [B, K, A].
      batch: numpy batch with `actions`, `action_valid` and, if the policy has one, `state`.

    Returns:
      `action_mae`, and `action_mae_hold` of keeping the current state.
    """
    valid = batch["action_valid"][..., None].astype(np.float64)

    def mae(x):
        error = np.abs(np.asarray(x, np.float64) - batch["actions"])
        return float((error * valid).sum() / (valid.sum() * batch["actions"].shape[-1]))

    out = {"action_mae": mae(predicted)}
    if "state" in batch:
        out["action_mae_hold"] = mae(np.broadcast_to(batch["state"][:, None], predicted.shape))
    return out


def mean_baseline(clean, train: Iterable[dict], held_out: Iterable[dict]) -> dict[str, float]:
    """Flow-matching losses of the best constant prediction: the mean target of the training set.

    The target is noise - x, so predicting -mean(x) leaves 1 + (x - mean(x))^2 per element.

    Args:
      clean: batch -> dict of loss name -> clean arrays [B, ...] that the policy denoises.
    """
    sums, counts = {}, {}
    for batch in train:
        for name, x in jax.device_get(clean(batch)).items():
            sums[name] = sums.get(name, 0) + x.astype(np.float64).sum(axis=0)
            counts[name] = counts.get(name, 0) + len(x)
    means = {name: total / counts[name] for name, total in sums.items()}
    errors: dict[str, list] = {name: [] for name in means}
    for batch in held_out:
        for name, x in jax.device_get(clean(batch)).items():
            errors[name].append(1 + np.square(x - means[name]).mean())
    return {name: float(np.mean(values)) for name, values in errors.items()}
