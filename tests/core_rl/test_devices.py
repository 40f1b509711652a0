import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from core_rl.devices import over_devices, use_all_cores

# Devices are made before JAX is first used, so in a process of its own.
FOUR_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
import jax.numpy as jnp
from core_rl.devices import over_devices

def count_down(keys, begin):
    # As races do, every device ends when its own rows have.
    def step(state):
        value, steps = state
        return jnp.maximum(value - 1.0, 0.0), steps + 1
    value, steps = jax.lax.while_loop(
        lambda state: jnp.any(state[0] > 0.0), step, (begin, jnp.int32(0))
    )
    return {"noise": jax.vmap(jax.random.uniform)(keys), "steps": jnp.full(begin.shape, steps)}

keys = jax.random.split(jax.random.key(0), 6)
traced = []

def noted(keys, begin):
    traced.append(len(keys))
    return count_down(keys, begin)

spread = over_devices(noted)
told = spread(keys, jnp.arange(6.0))
spread(keys, jnp.arange(6.0))
assert traced == [2]  # once, not at every call
assert len(told["noise"].sharding.device_set) == 3  # 6 rows, evenly on at most 4
assert told["steps"].tolist() == [1, 1, 3, 3, 5, 5], told["steps"]
alone = jax.vmap(jax.random.uniform)(keys)
assert (told["noise"] == alone).all()
"""


def test_rows_are_shared_out_evenly_and_every_device_ends_on_its_own():
    told = subprocess.run([sys.executable, "-c", FOUR_DEVICES], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


def test_once_jax_runs_its_devices_stay():
    devices = jax.devices()
    use_all_cores()
    assert jax.devices() == devices
    doubled = over_devices(lambda x: 2 * x)(jnp.arange(7))
    np.testing.assert_array_equal(doubled, 2 * np.arange(7))
