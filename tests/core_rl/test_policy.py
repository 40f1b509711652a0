"""Policy bundles: small, self-contained, the same policy everywhere, and never half a bundle."""

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl import policy as policy_module
from core_rl.errors import UserError
from core_rl.policy import load_policy, save_policy
from core_rl.running_stats import RunningStats, normalise

ROOT = Path(__file__).parents[2]
SIZES = (48, 256, 400, 32, 2)  # 128,242 weights and biases
FILES = {"policy.json", "params.npz", "policy.bin", "golden.npz"}


def apply(params, obs):
    hidden = normalise(params["stats"], obs["state"])
    for kernel, bias in params["layers"]:
        hidden = jnp.tanh(hidden @ kernel + bias)
    return hidden * obs["gain"][..., None]


def make_params():
    generator = np.random.default_rng(0)

    def normal(*shape, scale=1.0):
        return jnp.asarray(generator.normal(size=shape) * scale, jnp.float32)

    stats = RunningStats(count=jnp.asarray(9.0), mean=normal(48), deviation=normal(48) ** 2)
    layers = [
        (normal(inputs, outputs, scale=inputs**-0.5), normal(outputs, scale=0.1))
        for inputs, outputs in itertools.pairwise(SIZES)
    ]
    return {"stats": stats, "layers": layers}


def save(directory, **changes):
    arguments = {
        "apply": apply,
        "params": make_params(),
        "example_obs": {"state": np.zeros(48, np.float32), "gain": np.ones((), np.float32)},
        "observation_spec": {"state": {"names": ["speed"], "unit": "m/s"}},
        "action_spec": {"low": -1.0, "high": 1.0},
        "network_config": {"hidden": list(SIZES[1:-1])},
        "record": {"epoch": 3, "score": float("nan")},
        "extra": {"car": "roadster"},
    }
    save_policy(directory, **{**arguments, **changes})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "policy"
    save(directory)
    return directory


@pytest.fixture(scope="module")
def policy(bundle):
    return load_policy(bundle)


@pytest.fixture
def copy(bundle, tmp_path):
    directory = tmp_path / "policy"
    directory.mkdir()
    for name in FILES:
        (directory / name).write_bytes((bundle / name).read_bytes())
    return directory


def some_obs(*lead):
    generator = np.random.default_rng(1)
    return {
        "state": generator.normal(size=(*lead, 48)).astype(np.float32),
        "gain": generator.uniform(size=lead).astype(np.float32),
    }


def test_a_bundle_is_four_files_within_a_megabyte(bundle):
    assert {path.name for path in bundle.iterdir()} == FILES
    assert sum(path.stat().st_size for path in bundle.iterdir()) < 1_000_000


def test_the_program_names_no_directory_of_this_machine(bundle):
    program = (bundle / "policy.bin").read_bytes()
    assert str(ROOT).encode() not in program and b"site-packages" not in program


def test_the_loaded_policy_acts_like_the_one_that_was_saved(policy):
    obs = some_obs(20)
    np.testing.assert_allclose(policy.act(obs), apply(make_params(), obs), atol=1e-6)


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_leading_axes_are_free(policy, lead):
    obs = some_obs(*lead)
    action = policy.act(obs)
    assert action.shape == (*lead, 2)
    flat = {"state": obs["state"].reshape(-1, 48), "gain": obs["gain"].reshape(-1)}
    expected = apply(make_params(), flat)
    np.testing.assert_allclose(action.reshape(-1, 2), expected, atol=1e-6)


def test_entries_are_cast_and_unknown_ones_ignored(policy):
    obs = some_obs(4)
    other = {name: entry.astype(np.float64).tolist() for name, entry in obs.items()}
    np.testing.assert_array_equal(
        policy.act({**other, "image": np.zeros((4, 8, 8))}), policy.act(obs)
    )


def test_apply_is_pure_under_jit_scan_and_vmap(policy):
    obs = some_obs(5, 3)

    def rollout(state, gain):
        def step(state, _):
            action = policy.apply(policy.params, {"state": state, "gain": gain})
            return state + jnp.sum(action), action

        return jax.lax.scan(step, state, None, length=4)[1]

    actions = jax.jit(jax.vmap(jax.vmap(rollout)))(obs["state"], obs["gain"])
    assert actions.shape == (5, 3, 4, 2)
    np.testing.assert_allclose(actions[:, :, 0], policy.act(obs), atol=1e-6)
    np.testing.assert_allclose(
        actions[2, 1], rollout(obs["state"][2, 1], obs["gain"][2, 1]), atol=1e-5
    )


def test_apply_maps_over_one_entry_or_over_parameters(policy):
    obs = some_obs(3)
    one = jax.vmap(
        lambda gain: policy.apply(policy.params, {"state": obs["state"][0], "gain": gain})
    )
    repeated = np.repeat(obs["state"][:1], 3, axis=0)
    np.testing.assert_allclose(
        one(jnp.asarray(obs["gain"])), policy.act({**obs, "state": repeated}), atol=1e-6
    )
    population = jax.tree.map(lambda leaf: jnp.stack([leaf, 2.0 * leaf]), policy.params)
    actions = jax.vmap(policy.apply, in_axes=(0, None))(population, obs)
    assert actions.shape == (2, 3, 2)
    np.testing.assert_allclose(actions[0], policy.act(obs), atol=1e-6)
    assert np.max(np.abs(actions[1] - actions[0])) > 0.01


def test_the_manifest_tells_what_goes_in_and_out_and_where_it_comes_from(policy):
    manifest = policy.manifest
    assert manifest["observation"] == {
        "state": {"names": ["speed"], "unit": "m/s", "shape": [48], "dtype": "float32"},
        "gain": {"shape": [], "dtype": "float32"},
    }
    assert manifest["action"] == {"low": -1.0, "high": 1.0, "shape": [2], "dtype": "float32"}
    assert manifest["num_params"] == 128_242 + 1 + 2 * 48  # layers, and the statistics
    assert manifest["record"] == {"epoch": 3, "score": "nan"}
    assert manifest["extra"] == {"car": "roadster"}
    assert manifest["platforms"] == ["cpu", "cuda"]


@pytest.mark.parametrize(
    ("obs", "expected"),
    [
        ({"state": np.zeros(48)}, "reads 'gain', which is not among ['state']"),
        ({"state": np.zeros(47), "gain": 1.0}, "'state' of shape [48] behind any leading axes"),
        ({"state": np.zeros(()), "gain": 1.0}, "'state' of shape [48] behind any leading axes"),
        ({"state": np.zeros((3, 48)), "gain": 1.0}, "differ in their leading axes"),
    ],
)
def test_an_observation_that_does_not_fit_is_named(policy, obs, expected):
    with pytest.raises(UserError) as caught:
        policy.act(obs)
    assert expected in str(caught.value)


def refused(directory):
    with pytest.raises(UserError) as caught:
        load_policy(directory)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)
    return str(caught.value)


def test_a_missing_bundle_is_named(tmp_path):
    assert "policy.json is missing" in refused(tmp_path / "none")


@pytest.mark.parametrize("name", ["params.npz", "policy.bin", "golden.npz"])
def test_a_missing_or_damaged_file_is_named(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert f"{name} differs from its checksum" in refused(copy)
    (copy / name).unlink()
    assert f"{name} is missing" in refused(copy)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "cannot read"),
        ("[]", "does not describe a policy bundle"),
        ('{"format": "core_rl policy bundle", "format_version": 99}', "format 99"),
        ('{"format": "core_rl policy bundle", "format_version": 1}', "lacks 'observation'"),
    ],
)
def test_a_manifest_of_something_else_is_named(copy, content, expected):
    (copy / "policy.json").write_text(content)
    assert expected in refused(copy)


def edit(directory, name, content, **manifest):
    (directory / name).write_bytes(content)
    changed = json.loads((directory / "policy.json").read_text())
    changed["files"][name] = hashlib.sha256(content).hexdigest()
    (directory / "policy.json").write_text(json.dumps({**changed, **manifest}))


def test_a_policy_that_acts_differently_here_is_refused(copy):
    golden = dict(np.load(copy / "golden.npz"))
    golden["action"] = golden["action"] + np.float32(1e-3)
    np.savez(copy / "golden.npz", **golden)
    edit(copy, "golden.npz", (copy / "golden.npz").read_bytes())
    assert "a golden action is off by 1.0e-03" in refused(copy)


def test_a_program_for_another_platform_or_version_is_refused(copy, monkeypatch):
    def fail(_):
        raise ValueError("Serialization version 9\nnot supported")

    monkeypatch.setattr(policy_module.export, "deserialize", fail)
    assert f"(jax {jax.__version__}) does not run in jax" in refused(copy)
    edit(copy, "policy.bin", b"", platforms=["tpu"])
    assert "runs on tpu, not on cpu" in refused(copy)


def test_a_new_bundle_replaces_the_old_one_only_when_it_works(copy, monkeypatch):
    save(copy, record={"epoch": 4})
    assert load_policy(copy).manifest["record"] == {"epoch": 4}

    def fail(directory):
        raise UserError("killed")

    monkeypatch.setattr(policy_module, "load_policy", fail)
    with pytest.raises(UserError, match="killed"):
        save(copy, record={"epoch": 5})
    monkeypatch.undo()
    assert load_policy(copy).manifest["record"] == {"epoch": 4}
    assert list(copy.parent.iterdir()) == [copy]


def test_nothing_but_a_bundle_is_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not a policy bundle"):
        save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="observation_spec names 'sate'"):
        save(tmp_path / "policy", observation_spec={"sate": {}})


LOAD_ALONE = """
import sys
import numpy as np
from core_rl.policy import load_policy
policy = load_policy(sys.argv[1])
print(policy.act({"state": np.ones(48), "gain": np.ones(())}).tolist())
training = {"flax", "optax", "orbax", "brax", "wandb", "core_rl.networks", "core_rl.qr_sac"}
print(sorted(training & set(sys.modules)))
"""


def test_loading_needs_nothing_of_the_training(bundle, policy):
    process = subprocess.run(
        [sys.executable, "-c", LOAD_ALONE, str(bundle)], capture_output=True, text=True, cwd=ROOT
    )
    action, imported = process.stdout.splitlines()
    expected = policy.act({"state": np.ones(48), "gain": np.ones(())})
    np.testing.assert_allclose(json.loads(action), expected, atol=1e-6)
    assert imported == "[]"
