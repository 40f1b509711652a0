"""Rows of work that know nothing of each other, a share of them on every device.

XLA spreads one program over the cores of a CPU only where a single operation is large. Those of a
simulator are small, and on two cores it is hardly faster than on one; a program per core is.
"""

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec


def use_all_cores() -> None:
    """Makes every CPU core of this process a device of its own. To be called before JAX is first
    used; later it does nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores or 1)


def over_devices(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays [N, ...] to arrays [N, ...], compiled, on as many devices as share the
    rows evenly. Rows must not know of each other; their results differ by rounding with the number
    of devices."""

    @functools.cache  # or every call would compile
    def on(count: int) -> Callable[..., Any]:
        devices = jax.devices()[:count]
        mesh = jax.make_mesh((count,), ("rows",), (AxisType.Auto,), devices=devices)
        share = PartitionSpec("rows")
        return jax.jit(
            jax.shard_map(function, mesh=mesh, in_specs=share, out_specs=share, check_vma=False)
        )

    def run(*rows: Any) -> Any:
        number = len(jax.tree.leaves(rows)[0])
        count = max(d for d in range(1, len(jax.devices()) + 1) if number % d == 0)
        return on(count)(*rows)

    return run
