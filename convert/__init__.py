"""Checkpoint conversion between PyTorch and JAX. Nothing in `motus_jax` imports this package."""
