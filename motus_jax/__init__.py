"""motus_jax: world-action models in JAX. Import the submodule you need; this package is light."""

__version__ = "0.1.0"
