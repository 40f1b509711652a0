"""The locomotion comparison: rewards against brax's own, episodes, stages, bad commands."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl import flags
from core_rl.env import State
from experiments import residual_mppi_mujoco as comparison
from experiments.qr_sac import make_env
from experiments.residual_mppi_mujoco import TASKS, interval, play, summarise
from tests.probes import QUICK_COMPILE, Plain

TINY = [
    "--only=fast",
    "--num_seeds=1",
    "--episodes=2",
    "--steps=4",
    "--planner.num_samples=4",
    "--planner.horizon=2",
    "--recording.num_envs=2",
    "--recording.num_steps=6",
    "--dynamics.hidden=8",
    "--dynamics.num_epochs=1",
    "--agent.hidden=8",
    "--agent.batch_size=8",
    "--train.num_envs=2",
    "--train.steps_per_epoch=2",
    "--train.updates_per_step=1",
    "--train.warmup_steps=2",
    "--train.num_epochs=1",
    "--train.replay_capacity=64",
    "--run.wandb.mode=disabled",
]


def torso(pipeline_state):
    return pipeline_state.x.pos[0]


@pytest.mark.parametrize("name", ["ant", "hopper"])
def test_rewards_rebuilt_from_observations_are_those_of_the_environment(name):
    """All but the forward velocity agree exactly; brax pays its mean over a step, and the entry is
    the velocity at the end of one, which small actions and many steps bring together."""
    task = TASKS[name]
    env = make_env(task.env)

    def step(state, key):
        action = 0.3 * jax.random.uniform(key, (env.action_size,), minval=-1.0)
        after = env.step(state, action)
        rebuilt = task.reward(state.obs, action, after.obs)
        moved = (torso(after.pipeline_state) - torso(state.pipeline_state)) / env.dt
        return after, {
            "action": action,
            "reward": after.reward,
            "rebuilt": rebuilt,
            "addon": task.addon(state.obs, action, after.obs),
            "forward": after.obs[task.forward],
            "moved": moved,
            "height": after.pipeline_state.x.pos[0, 2],
        }

    @jax.jit
    def run(key):
        reset_key, steps_key = jax.random.split(key)
        return jax.lax.scan(step, env.reset(reset_key), jax.random.split(steps_key, 40))[1]

    seen = jax.tree.map(np.asarray, run(jax.random.key(0)))
    np.testing.assert_allclose(
        seen["reward"] - seen["moved"][:, 0], seen["rebuilt"] - seen["forward"], atol=1e-4
    )
    assert abs(np.mean(seen["forward"] - seen["moved"][:, 0])) < 0.05
    assert np.corrcoef(seen["forward"], seen["moved"][:, 0])[0, 1] > 0.6
    if name == "ant":
        assert np.corrcoef(seen["addon"], -seen["moved"][:, 1])[0, 1] > 0.6
        assert abs(np.mean(seen["addon"] + seen["moved"][:, 1])) < 0.05
    else:
        np.testing.assert_allclose(seen["addon"], 10.0 * (seen["height"] - 1.0), atol=1e-5)


def test_the_other_addons_read_the_joints_that_they_name(tmp_path, monkeypatch):
    """The order of joints in brax's models, after the entries that the observation leaves out."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into the working directory
    for name, entry, joint, left_out in (("halfcheetah", 7, "ffoot", 1), ("swimmer", 1, "rot2", 2)):
        env = make_env(TASKS[name].env)
        names = env.sys.mj_model
        assert names.joint(entry + left_out).name == joint
        obs = jnp.zeros(env.observation_size).at[entry].set(-0.5)
        action = jnp.zeros(env.action_size)
        expected = {"halfcheetah": -5.0, "swimmer": -0.5}[name]
        assert float(TASKS[name].addon(jnp.zeros_like(obs), action, obs)) == expected


class Doomed(Plain):
    """Pays 1 a step, ends after the third, and is not finite after that."""

    def reset(self, rng):
        del rng
        return State(None, jnp.zeros(1), jnp.zeros(()), jnp.zeros(()), {})

    def step(self, state, action):
        del action
        count = state.obs + 1.0
        over = count[0] > 3.0
        reward = jnp.where(over, jnp.nan, 1.0)
        return state.replace(obs=count, reward=reward, done=jnp.float32(count[0] >= 3.0))


def test_nothing_counts_after_a_termination():
    def act(obs, key):
        del key
        return jnp.zeros(1), {"seen": obs[0]}

    def addon(obs, action, after):
        del obs, action
        return after[0]

    played = jax.jit(
        lambda key: play(Doomed(), act, addon, 10, key), compiler_options=QUICK_COMPILE
    )(jax.random.key(0))
    assert {name: float(value) for name, value in played.items()} == {
        "basic": 3.0,
        "addon": 1.0 + 2.0 + 3.0,
        "steps": 3.0,
        "seen": 0.0 + 1.0 + 2.0,
        "terminated": 1.0,
    }


def test_interval_and_summary():
    # Student's t with 3 degrees of freedom: 3.182; deviation of 1, 2, 3, 4: 1.291.
    assert interval(np.array([[1.0, 2.0], [3.0, 4.0]])) == pytest.approx(3.1824 * 1.29099 / 2, 1e-4)
    assert interval(np.array([[1.0]])) is None
    sums = {
        "basic": np.array([[1.0, 2.0], [3.0, 4.0]]),
        "addon": np.ones((2, 2)),
        "steps": np.array([[2.0, 2.0], [2.0, 4.0]]),
        "effective_samples": np.array([[4.0, 4.0], [4.0, 8.0]]),
        "distance": np.zeros((2, 2)),
    }
    row = summarise(sums)
    assert row["total"]["mean"] == 3.5
    # Of two seeds with 2.5 and 4.5: 1 degree of freedom, 12.706; deviation of the mean 1.
    assert row["total"]["seeds_half_interval"] == pytest.approx(12.706, 1e-4)
    assert "gain" not in row
    better = {**sums, "basic": sums["basic"] + 2.0}
    assert summarise(sums, better)["gain"]["mean"] == 2.0
    assert summarise(sums, better)["gain"]["half_interval"] == 0.0
    assert row["total"]["seeds"] == [2.5, 4.5]
    assert row["effective_samples"] == 2.0
    assert row["steps"] == 2.5


def run_main(arguments, capsys):
    config = flags.parse(comparison.CONFIG, arguments)
    assert comparison.main(config) == 0
    return capsys.readouterr().out


def test_every_stage_is_done_once(tmp_path, capsys, monkeypatch):
    """On brax's trivial environment: compiling the others takes minutes."""
    fast = dataclasses.replace(
        TASKS["ant"], env="brax:fast", addon=lambda obs, action, after: after[0], forward=1
    )
    monkeypatch.setitem(TASKS, "fast", fast)
    arguments = [*TINY, f"--out={tmp_path}", "--json"]
    first = run_main([*arguments, "--variants=prior"], capsys)
    assert set(json.loads(first)["fast"]) == {"prior"}
    folder = tmp_path / "fast-s0"
    weights = (folder / "dynamics.npz").read_bytes()
    (played,) = (folder / "evaluations").iterdir()
    stamp = played.stat().st_mtime_ns

    def never(*_, **__):
        raise AssertionError("dynamics are learnt again")

    monkeypatch.setattr(comparison, "collect", never)
    again = json.loads(run_main([*arguments, "--variants=prior,valued"], capsys))
    assert again["fast"]["prior"] == json.loads(first)["fast"]["prior"]
    assert again["fast"]["valued"]["distance"] > 0.0
    assert (folder / "dynamics.npz").read_bytes() == weights
    assert played.stat().st_mtime_ns == stamp
    assert (tmp_path / "totals.png").read_bytes().startswith(b"\x89PNG")
    # Another planner is another evaluation beside it, not instead of it.
    run_main([*arguments, "--variants=prior", "--planner.discount=0.5"], capsys)
    assert len(list((folder / "evaluations").glob("prior-*.json"))) == 2
    with pytest.raises(SystemExit):
        flags.main(
            comparison.main, comparison.CONFIG, argv=["", *arguments, "--dynamics.num_epochs=2"]
        )
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert "dynamics.json" in line


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--only=ants", "ant, hopper"),
        ("--variants=residuals", "greedy"),
        ("--episodes=0", "--episodes must be at least 1"),
        ("--num_seeds=0", "--num_seeds"),
        ("--first_seed=-1", "--first_seed"),
        ("--planner.horizon=0", "--planner.horizon must be at least 1"),
        ("--planner.noise_std=0", "--planner.noise_std"),
        ("--planner.importance=some", "--planner.importance"),
        ("--recording.noise=-1", "--recording.noise"),
    ],
)
def test_a_bad_command_is_refused_in_one_line(tmp_path, capsys, argument, words):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        flags.main(comparison.main, comparison.CONFIG, argv=["", f"--out={out}", argument])
    assert end.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert words.lstrip("-") in line
    assert not out.exists()
