"""Where arrays live: one mesh, one table from logical axis names to mesh axes.

Every parameter carries logical axis names (`models.layers.param`), every activation constraint
goes through `constrain`; both are translated here and nowhere else. The mesh has the axes
`('data', 'fsdp', 'tensor')`. Stored parameters are sharded over `fsdp` along their input width
(ZeRO-3: `models.layers.weight` gathers them where they are used, layer by layer inside the scan),
activations over `('data', 'fsdp')` along the batch, so the two tables differ on purpose.
"""

import dataclasses
import math
import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from motus_jax.arrays import Array

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
_PROCESS = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}

PARAM_RULES = {
    "layers": None,
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "head_dim": None,
    "vocab": "tensor",
    "channels_in": None,
    "channels_out": "fsdp",
    None: None,
}

ACTIVATION_RULES = {
    "batch": BATCH_AXES,
    "seq": None,
    "embed": None,
    "mlp": "tensor",
    "heads": "tensor",
    "head_dim": None,
    None: None,
}

# Of a parameter at the moment it is computed with.
GATHERED_RULES = {name: axis if axis == "tensor" else None for name, axis in PARAM_RULES.items()}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; at most one may be -1, which takes the devices that are left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
    """Builds the device mesh of `config` over `devices` (default: all of them).

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1:
        raise ValueError(f"config.mesh: only one axis may be -1, got {config}")
    if -1 in sizes:
        known = math.prod(s for s in sizes if s != -1)
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    if math.prod(sizes) != len(devices):
        raise ValueError(
            f"config.mesh: {dict(zip(MESH_AXES, sizes, strict=True))} needs {math.prod(sizes)} "
            f"devices but there are {len(devices)}; set one axis to -1 to use them all"
        )
    return jax.make_mesh(
        tuple(sizes), MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * len(MESH_AXES)
    )


def _spec(axes, shape, rules, mesh_shape) -> PartitionSpec:
    """PartitionSpec for logical `axes`; a dimension its mesh axes do not divide stays whole."""
    spec, used = [], set()
    for name, size in zip(axes, shape, strict=True):
        if name not in rules:
            raise ValueError(f"unknown logical axis {name!r}; known: {sorted(map(str, rules))}")
        target = rules[name]
        names = () if target is None else (target,) if isinstance(target, str) else tuple(target)
        names = tuple(n for n in names if mesh_shape[n] > 1)
        total = math.prod(mesh_shape[n] for n in names)
        if not names or size % total or used & set(names):
            spec.append(None)
        else:
            used |= set(names)
            spec.append(names[0] if len(names) == 1 else names)
    return PartitionSpec(*spec)


def logical_axes(variable) -> tuple[str | None, ...]:
    """Logical axis names of an `nnx.Param`, with 'layers' in front when its module was stacked."""
    shape, axes = variable.get_value().shape, variable.get_metadata()["logical"]
    return ("layers",) * (len(shape) - len(axes)) + tuple(axes)


def param_sharding(variable, mesh: Mesh) -> NamedSharding:
    """Sharding of one parameter on `mesh` by `PARAM_RULES`."""
    shape = variable.get_value().shape
    return NamedSharding(mesh, _spec(logical_axes(variable), shape, PARAM_RULES, mesh.shape))


def batch_sharding(mesh: Mesh, shape) -> NamedSharding:
    """Sharding of a batch array: leading axis over ('data', 'fsdp'), the rest whole."""
    axes = ("batch",) + (None,) * (len(shape) - 1)
    return NamedSharding(mesh, _spec(axes, shape, ACTIVATION_RULES, mesh.shape))


def join_processes() -> None:
    """`jax.distributed.initialize()`: finds the others by itself on TPU, SLURM and Open MPI.

    Elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say where and who they are.
    """
    number = {key: int(os.environ[name]) for key, name in _PROCESS.items() if name in os.environ}
    jax.distributed.initialize(**number)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of scalars and other values that every device holds."""
    return NamedSharding(mesh, PartitionSpec())


def gather(x: Array, *axes: str | None) -> Array:
    """A parameter (or a cast of it) made whole over `fsdp` on the mesh in use.

    Said and not left to the compiler: it may as well move activations, and where `data`, `fsdp` and
    `tensor` are all larger than one, XLA's partitioner (of jax 0.10.2 and 0.12.0) then computes wrong
    products of activations and weights.
    """
    return constrain(x, *axes, rules=GATHERED_RULES)


def constrain(x: Array, *axes: str | None, rules=ACTIVATION_RULES) -> Array:
    """Constrains an activation to the mesh in use (`jax.set_mesh`); without one, returns `x`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.axis_sizes) == 1:
        return x
    spec = _spec(axes, x.shape, rules, mesh.shape)
    return jax.lax.with_sharding_constraint(x, spec)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """Turns each process's slice of the global batch (numpy) into global arrays on `mesh`."""

    def put(x):
        shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
        return jax.make_array_from_process_local_data(batch_sharding(mesh, shape), x, shape)

    with jax.transfer_guard_host_to_device("allow"):  # between processes it counts as implicit
        return {name: put(x) for name, x in batch.items()}
