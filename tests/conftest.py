"""Settings of the whole suite, made before anything imports jax."""

import os

# Nearly all the time of these tests is XLA compiling programs that then run once on tiny arrays, so
# code that compiles faster wins over code that runs faster. Your own level in XLA_FLAGS is kept.
_flags = os.environ.get("XLA_FLAGS", "")
if "xla_backend_optimization_level" not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} --xla_backend_optimization_level=0".strip()

from beartype import claw  # noqa: E402  (after the flags, which jax reads on import)
from jaxtyping import install_import_hook  # noqa: E402

# Annotations are promises: types (beartype) and the shapes of ops (jaxtyping) of every call are checked
# here. jaxtyping alone would do both, but its checks cost a third of the time of the pure Python tests.
claw.beartype_packages(["motus_jax", "convert"])
install_import_hook("motus_jax.ops", "beartype.beartype")
