"""Checkpoints: bit by bit, safe under donation, a full disk and a kill at any moment."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from core_rl.checkpoint import Checkpointer
from core_rl.errors import UserError

ROOT = Path(__file__).parents[2]


class Moments(NamedTuple):
    mean: jax.Array
    nothing: tuple


@struct.dataclass
class State:
    params: dict
    moments: Moments
    key: jax.Array
    keys: jax.Array
    count: jax.Array
    absent: None = None


def make_state(seed=0):
    key = jax.random.key(seed)
    return State(
        params={"w": jax.random.normal(key, (3, 4)), "odd": jnp.array([jnp.nan, jnp.inf, -0.0])},
        moments=Moments(mean=jnp.ones(2, jnp.bfloat16), nothing=()),
        key=key,
        keys=jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        count=jnp.asarray(2**31 - 1, jnp.int32),
    )


def raw(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(leaf)), np.asarray(jax.random.key_data(leaf)).tobytes()
    return str(leaf.dtype), np.asarray(leaf).tobytes()


def assert_identical(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert jax.tree.map(raw, first) == jax.tree.map(raw, second)


@pytest.fixture
def checkpointer(tmp_path):
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    yield checkpointer
    checkpointer.close()


def saved_epochs(directory):
    return sorted(int(path.name) for path in directory.iterdir())


def test_round_trip_is_bit_exact_in_a_new_process_too(tmp_path):
    first = Checkpointer(tmp_path)
    assert first.latest() is None
    first.save(3, make_state())
    first.close()
    second = Checkpointer(tmp_path)
    assert second.latest() == 3
    assert_identical(second.restore(3, jax.eval_shape(make_state)), make_state())
    second.close()


def test_only_the_newest_is_kept_and_the_same_epoch_is_saved_once(checkpointer, tmp_path):
    for epoch in (1, 2, 5):
        checkpointer.save(epoch, make_state(epoch))
    checkpointer.save(5, make_state(6))
    assert checkpointer.latest() == 5
    assert saved_epochs(tmp_path / "checkpoints") == [5]
    assert_identical(checkpointer.restore(5, jax.eval_shape(make_state)), make_state(5))
    with pytest.raises(ValueError, match="epoch 4 is older than the checkpoint of epoch 5"):
        checkpointer.save(4, make_state())


def test_the_state_may_be_donated_as_soon_as_save_returns(checkpointer):
    add = jax.jit(lambda state: state + 1.0, donate_argnums=0)
    state = add(jnp.zeros(4_000_000))
    for epoch in range(1, 4):
        checkpointer.save(epoch, {"x": state})
        for _ in range(3):
            state = add(state)
        template = {"x": jax.ShapeDtypeStruct(state.shape, state.dtype)}
        restored = checkpointer.restore(epoch, template)["x"]
        np.testing.assert_array_equal(restored, jnp.full_like(state, 3.0 * epoch - 2.0))


def test_a_restored_state_may_be_donated(checkpointer):
    checkpointer.save(1, {"x": jnp.arange(100_000.0)})
    template = {"x": jax.ShapeDtypeStruct((100_000,), jnp.float32)}
    add = jax.jit(lambda state: jax.tree.map(lambda x: x + 1.0, state), donate_argnums=0)
    stepped = add(add(checkpointer.restore(1, template)))
    np.testing.assert_array_equal(stepped["x"], np.arange(100_000.0, dtype=np.float32) + 2.0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.replace(count=jax.ShapeDtypeStruct((), jnp.float32)), "count is int32[], not"),
        (lambda t: t.replace(key=t.count), "key is key<fry>[], not int32[]"),
        (lambda t: t.replace(key=t.keys), "key is key<fry>[], not key<rbg>[3]"),
        (lambda t: t.replace(params={"w": t.params["w"]}), "params/odd is float32[3], not absent"),
        (lambda t: t.replace(absent=t.count), "absent is absent, not int32[]"),
    ],
)
def test_a_state_of_another_configuration_is_refused(checkpointer, change, expected):
    checkpointer.save(1, make_state())
    with pytest.raises(UserError) as caught:
        checkpointer.restore(1, change(jax.eval_shape(make_state)))
    assert expected in str(caught.value)


def test_missing_and_damaged_checkpoints_are_named(checkpointer, tmp_path):
    state = {"x": jax.random.normal(jax.random.key(0), (50_000,))}
    template = jax.eval_shape(lambda: state)
    checkpointer.save(1, state)
    with pytest.raises(UserError, match=r"the checkpoint of epoch 7 .* cannot be read"):
        checkpointer.restore(7, template)
    files = [path for path in (tmp_path / "checkpoints" / "1").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(UserError, match=r"the checkpoint of epoch 1 .* cannot be read") as caught:
        checkpointer.restore(1, template)
    assert "\n" not in str(caught.value)


def test_a_directory_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/checkpoints for checkpoints: Not a directory"):
        Checkpointer(tmp_path / "file" / "checkpoints")


# A disk with room for little: where the machine allows, a real one of 6 MB; always, a quota.
def tmpfs_command(directory):
    mount = f'mount -t tmpfs -o size=6m none {directory} && exec "$0" "$@"'
    return ["unshare", "-Urm", "sh", "-c", mount]


def can_mount():
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*tmpfs_command("/tmp"), "true"], capture_output=True).returncode == 0


FULL_DISK = """
import json, resource, sys
import jax.numpy as jnp, numpy as np
from pathlib import Path
from core_rl.checkpoint import Checkpointer
from core_rl.errors import UserError
from core_rl.policy import load_policy, save_policy
from core_rl.tracking import JsonlSink, read_metrics, write_json

directory, quota = Path(sys.argv[1]), int(sys.argv[2])
small, large = {"x": jnp.arange(1000.0)}, {"x": jnp.asarray(np.random.rand(2_000_000))}
result = {}

def message(call):
    try:
        call()
    except UserError as error:
        return str(error)

def save_small_policy(size):
    save_policy(
        directory / "policy",
        apply=lambda params, obs: obs["x"] * params["w"].sum(),
        params={"w": np.random.rand(size).astype(np.float32)},
        example_obs={"x": np.zeros(3, np.float32)},
        record={},
    )

save_small_policy(10)
write_json(directory / "record.json", {"a": 1})
checkpointer = Checkpointer(directory / "checkpoints")
checkpointer.save(1, small)
checkpointer.wait()
if quota:
    resource.setrlimit(resource.RLIMIT_FSIZE, (quota, resource.RLIM_INFINITY))

result["no room"] = message(lambda: checkpointer.save(2, large))
check, checkpointer._check_space = checkpointer._check_space, lambda *_: None
checkpointer.save(2, large)
result["ran full"] = message(checkpointer.wait)
checkpointer._check_space = check
result["latest"] = checkpointer.latest()
result["left"] = sorted(path.name for path in (directory / "checkpoints").iterdir())
result["restored"] = bool((checkpointer.restore(1, small)["x"] == small["x"]).all())
checkpointer.save(3, small)
checkpointer.close()
result["later"] = checkpointer.latest()

result["policy"] = message(lambda: save_small_policy(2_000_000))
result["policy size"] = load_policy(directory / "policy").params["w"].size
result["record"] = message(lambda: write_json(directory / "record.json", {"a": "b" * 8_000_000}))
result["record kept"] = json.loads((directory / "record.json").read_text())

sink = JsonlSink(directory / "metrics.jsonl")
count = 0
def fill():
    global count
    while True:
        sink.write({"epoch": count, "text": "x" * 5000})
        count += 1
result["metrics"] = message(fill)
result["metrics rows"] = len(read_metrics(directory / "metrics.jsonl")) == count
result["names"] = sorted(path.name for path in directory.iterdir())
print(json.dumps(result))
"""


@pytest.mark.parametrize("disk", ["quota", *(["tmpfs"] if can_mount() else [])])
def test_a_full_disk_is_one_clear_error_and_costs_nothing_saved(tmp_path, disk):
    quota = 1_000_000 if disk == "quota" else 0
    prefix = tmpfs_command(tmp_path) if disk == "tmpfs" else []
    process = subprocess.run(
        [*prefix, sys.executable, "-c", FULL_DISK, str(tmp_path), str(quota)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["no room"].startswith("disk full: the checkpoint of epoch 2 needs 8.0 MB in ")
    assert result["ran full"].startswith("disk full: cannot write the checkpoint of epoch 2 in ")
    assert (result["latest"], result["left"], result["restored"]) == (1, ["1"], True)
    assert result["later"] == 3
    assert result["policy"].startswith("disk full: cannot write ")
    assert result["policy size"] == 10
    assert result["record"].startswith("disk full: cannot write ")
    assert result["record kept"] == {"a": 1}
    assert result["metrics"].startswith("disk full: cannot write ")
    assert result["metrics rows"] is True
    assert result["names"] == ["checkpoints", "metrics.jsonl", "policy", "record.json"]


SAVE_FOREVER = """
import sys
import jax.numpy as jnp, numpy as np
from core_rl.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1])
noise = jnp.asarray(np.random.default_rng(0).random(5_000_000, dtype=np.float32))
for epoch in range(1, 1000):
    checkpointer.save(epoch, {"x": noise, "epoch": jnp.asarray(epoch)})
"""


def test_a_kill_during_a_save_leaves_the_checkpoint_before(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    deadline = time.monotonic() + 120
    try:
        # The second save at the earliest, so that there is one before it.
        while not [path for path in tmp_path.glob("*-tmp") if not path.name.startswith("1.")]:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert list(tmp_path.glob("*-tmp")), "the kill came between two saves"
    checkpointer = Checkpointer(tmp_path)
    epoch = checkpointer.latest()
    assert epoch is not None
    template = {
        "x": jax.ShapeDtypeStruct((5_000_000,), jnp.float32),
        "epoch": jax.ShapeDtypeStruct((), jnp.int32),
    }
    restored = checkpointer.restore(epoch, template)
    assert np.asarray(restored["epoch"]) == epoch
    noise = np.random.default_rng(0).random(5_000_000, dtype=np.float32)
    np.testing.assert_array_equal(restored["x"], noise)
    checkpointer.save(epoch + 1, {"x": jnp.zeros(3)})
    checkpointer.close()
    assert saved_epochs(tmp_path) == [epoch + 1]
