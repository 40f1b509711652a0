"""Runs as a user starts them: resume after a kill, signals, a full disk, bad commands.

The general experiment on brax's trivial environment stands for all, since everything here happens
in `core_rl.launch` and `core_rl.flags`, which all experiments share.
"""

import ast
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from core_rl import flags
from core_rl.checkpoint import Checkpointer
from core_rl.errors import UserError
from core_rl.launch import _with_trained_agent, run, trained_agent
from core_rl.policy import load_policy
from core_rl.runs import members_of, read_run
from core_rl.tracking import read_metrics
from experiments import qr_sac, runs, sophy_evaluate, sophy_time_trial

ROOT = Path(__file__).parents[2]
TINY = [
    "--env=brax:fast",
    "--agent.hidden=8",
    "--agent.batch_size=16",
    "--agent.num_quantiles=4",
    "--train.num_envs=4",
    "--train.steps_per_epoch=4",
    "--train.updates_per_step=2",
    "--train.warmup_steps=4",
    "--train.replay_capacity=256",
    "--episode_length=5",
    "--run.evaluate_every=2",
    "--run.checkpoint_every=2",
    "--run.wandb.mode=disabled",
]


def command(*arguments, module="experiments.qr_sac"):
    return [sys.executable, "-m", module, *arguments]


def start(*arguments, module="experiments.qr_sac", **options):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command(*arguments, module=module),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def rows_of(workdir):
    path = workdir / "metrics.jsonl"
    return read_metrics(path) if path.exists() else []


def wait_for_rows(process, workdir, count, seconds=120):
    deadline = time.monotonic() + seconds
    while len(rows_of(workdir)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no {count} rows in {seconds} s"
        time.sleep(0.02)


def final_state(workdir, arguments, epoch):
    config = flags.parse(qr_sac.CONFIG, arguments)
    init = qr_sac.make_experiment(config).trainer.init
    template = jax.eval_shape(init, jax.random.key(0))
    checkpointer = Checkpointer(workdir / "checkpoints")
    state = checkpointer.restore(epoch, template)
    checkpointer.close()
    return state


def as_bytes(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    """2N epochs in one go = N and a bit more, kill -9, the same command again: all of the state,
    replay included, and all metrics."""
    arguments = [*TINY, "--train.num_epochs=60"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole = start(*arguments, f"--workdir={straight}")
    _, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors

    killed = start(*arguments, f"--workdir={broken}")
    wait_for_rows(killed, broken, 21)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    before = rows_of(broken)
    assert 21 <= len(before) < 60
    again = start(*arguments, f"--workdir={broken}")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "resuming" in errors

    one, other = (final_state(path, arguments, 60) for path in (straight, broken))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert [as_bytes(leaf) for leaf in jax.tree.leaves(one)] == [
        as_bytes(leaf) for leaf in jax.tree.leaves(other)
    ]

    def learnt(rows):
        skipped = "time/"
        return [
            {name: str(value) for name, value in row.items() if not name.startswith(skipped)}
            for row in rows
        ]

    assert learnt(rows_of(straight)) == learnt(rows_of(broken))
    # What the killed process recorded after its last checkpoint is kept aside, not lost.
    superseded = broken / "metrics.superseded.jsonl"
    kept = read_metrics(superseded) if superseded.exists() else []
    resumed_after = json.loads((broken / "record.json").read_text())["resumes"][0]["epoch"]
    assert [row["epoch"] for row in kept] == list(range(resumed_after + 1, len(before) + 1))


def test_a_signal_ends_the_run_in_order_and_it_goes_on(tmp_path):
    arguments = [*TINY, "--train.num_epochs=100000", f"--workdir={tmp_path / 'run'}"]
    process = start(*arguments)
    wait_for_rows(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert "SIGTERM after" in output
    assert "to continue:" in output
    # The last row is evaluated and the checkpoint is of the last row.
    rows = rows_of(tmp_path / "run")
    assert "eval/return" in rows[-1]
    checkpointer = Checkpointer(tmp_path / "run/checkpoints")
    assert checkpointer.latest() == rows[-1]["epoch"]
    checkpointer.close()
    assert load_policy(tmp_path / "run/policy").act({"state": np.zeros(2)}).shape == (1,)


def test_a_full_disk_ends_in_one_line_and_keeps_what_was_recorded(tmp_path):
    """A quota on file size stands for the full disk: the replay's checkpoint does not fit."""
    workdir = tmp_path / "run"
    fits = [*TINY, "--train.num_epochs=4", f"--workdir={workdir}"]
    process = start(*fits)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    rows = rows_of(workdir)

    def quota():
        size = (workdir / "metrics.jsonl").stat().st_size + 200
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    process = start(*fits[:-2], "--train.num_epochs=8", f"--workdir={workdir}", preexec_fn=quota)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in errors
    message = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(message) == 1
    assert str(workdir) in message[0]
    assert rows_of(workdir)[:4] == rows
    checkpointer = Checkpointer(workdir / "checkpoints")
    assert checkpointer.latest() == 4
    checkpointer.close()


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(tmp_path):
    # float32 overflows: 1e38 times a learning rate of 1e30.
    config = flags.parse(
        qr_sac.CONFIG,
        [*TINY, "--agent.critic_lr=1e30", "--train.num_epochs=50", f"--workdir={tmp_path}"],
    )
    with pytest.raises(ValueError, match=r"not finite in epoch \d+: train/") as error:
        run(qr_sac.make_experiment(config), config.workdir)
    assert "\n" not in str(error.value)
    rows = rows_of(tmp_path)
    assert rows and not all(
        np.isfinite(value) for name, value in rows[-1].items() if name.startswith("train/")
    )


def failure(capsys, run_fn, config, *arguments):
    """The one line of stderr and the exit code of a command that must fail."""
    with pytest.raises(SystemExit) as end:
        flags.main(run_fn, config, argv=["program", *arguments])
    errors = capsys.readouterr().err.strip()
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, errors
    assert end.value.code not in (0, None)
    return lines[0]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--env.circuit=larkspurr", "larkspur"),
        ("--env.circuit=/nowhere/monza.csv", "/nowhere/monza.csv"),
        ("--env.circuit=generated:x", "whole number"),
        ("--env.car=gt3", "gt3_fr"),
        ("--env.substeps=0", "env.substeps"),
        ("--env.steering=left", "env.steering"),
        ("--env.reward.progress=-1", "env.reward.progress"),
        ("--agent.n_step=0", "agent.n_step"),
        ("--agent.n_step=2.5", "agent.n_step"),
        ("--agent.nstep=3", "agent.n_step"),
        ("--agent.actor_obs=camera", "camera"),
        ("--agent.activation=gelu", "relu"),
        ("--train.replay_capacity=10", "replay_capacity"),
        ("--run.evaluate_every=0", "run.evaluate_every"),
        ("--seed=-1", "seed"),
        ("--num_seeds=0", "num_seeds"),
        ("positional", "positional"),
    ],
)
def test_a_bad_training_command_is_refused_in_one_line(tmp_path, capsys, argument, words):
    line = failure(
        capsys,
        sophy_time_trial.train,
        sophy_time_trial.CONFIG,
        f"--workdir={tmp_path / 'run'}",
        argument,
    )
    assert words in line
    assert not (tmp_path / "run").exists()


def test_an_unusable_workdir_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" / "run"
    line = failure(capsys, qr_sac.train, qr_sac.CONFIG, *TINY, f"--workdir={workdir}")
    assert str(workdir) in line


def test_another_configuration_in_the_same_workdir_is_refused(tmp_path, capsys):
    arguments = [*TINY, "--train.num_epochs=1", f"--workdir={tmp_path}"]
    with pytest.raises(SystemExit) as end:
        flags.main(qr_sac.train, qr_sac.CONFIG, argv=["program", *arguments])
    assert end.value.code == 0
    capsys.readouterr()
    line = failure(capsys, qr_sac.train, qr_sac.CONFIG, *arguments, "--agent.n_step=3")
    assert "--agent.n_step=1" in line


def test_a_pruned_run_does_not_begin_anew(tmp_path, capsys):
    arguments = [*TINY, "--train.num_epochs=2", f"--workdir={tmp_path}"]
    config = flags.parse(qr_sac.CONFIG, arguments)
    run(qr_sac.make_experiment(config), tmp_path)
    before = (tmp_path / "policy/params.npz").read_bytes()
    assert runs.main(runs.RunsConfig((str(tmp_path),), prune=True, yes=True)) == 0
    line = failure(capsys, qr_sac.train, qr_sac.CONFIG, *arguments)
    assert f"{tmp_path}: this run's checkpoints were pruned" in line
    assert (tmp_path / "policy/params.npz").read_bytes() == before
    assert len(rows_of(tmp_path)) == 2


def test_the_kept_policy_s_row_may_be_superseded(tmp_path):
    """The run was killed after its best epoch and before that one's checkpoint."""
    config = flags.parse(qr_sac.CONFIG, [*TINY, "--train.num_epochs=2", f"--workdir={tmp_path}"])
    outcome = run(qr_sac.make_experiment(config), tmp_path)
    best = outcome.kept
    rest = [row for row in outcome.rows if row["epoch"] != best["epoch"]]
    lines = [json.dumps({**best, "attempt": number}) + "\n" for number in (0, 1)]
    (tmp_path / "metrics.superseded.jsonl").write_text("".join(lines))
    assert outcome._replace(rows=rest).kept["attempt"] == 1


def test_an_unknown_environment_is_refused_in_one_line(tmp_path, capsys):
    for spec, word in (("brax:antt", "ant"), ("ant", "brax:NAME"), ("brax:ant:warp", "spring")):
        line = failure(
            capsys, qr_sac.train, qr_sac.CONFIG, f"--env={spec}", f"--workdir={tmp_path / 'run'}"
        )
        assert word in line


def test_a_missing_policy_is_refused_in_one_line(tmp_path, capsys):
    for arguments, words in (
        ((), "--policy"),
        ((f"--policy={tmp_path}",), str(tmp_path)),
        (("--policy=x", "--laps=0"), "laps"),
    ):
        line = failure(capsys, sophy_evaluate.main, sophy_evaluate.Evaluate(), *arguments)
        assert words in line


def test_every_field_of_every_configuration_is_read():
    """A flag that nothing reads would lie to whoever sets it. Its own check is no reading."""
    read = set()

    class Reader(ast.NodeVisitor):
        def visit_FunctionDef(self, node):
            if node.name != "__post_init__":
                self.generic_visit(node)

        def visit_Attribute(self, node):
            if isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            self.generic_visit(node)

        def visit_Constant(self, node):
            read.add(node.value)

    for folder in ("core_rl", "projects", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            Reader().visit(ast.parse(path.read_text()))
    for config in (sophy_time_trial.CONFIG, qr_sac.CONFIG, sophy_evaluate.Evaluate()):
        for path in flags.flatten(config):
            assert path.rpartition(".")[2] in read, path


def test_seeds_side_by_side_are_recorded_one_by_one_and_resume(tmp_path):
    arguments = [*TINY, "--num_seeds=2", "--seed=5", f"--workdir={tmp_path}"]
    for num_epochs in (2, 4):
        config = flags.parse(qr_sac.CONFIG, [*arguments, f"--train.num_epochs={num_epochs}"])
        outcome = run(qr_sac.make_experiment(config), config.workdir)
        assert outcome.epochs == num_epochs
    rows = rows_of(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    losses = np.array([row["train/critic_loss"] for row in rows])
    assert losses.shape == (4, 2)
    assert np.all(losses[:, 0] != losses[:, 1])
    assert json.loads((tmp_path / "record.json").read_text())["seeds"] == [5, 6]
    assert load_policy(tmp_path / "policy").act({"state": np.zeros(2)}).shape == (1,)


def test_a_population_trains_side_by_side_as_each_member_alone(tmp_path):
    def rows_with(name, *more):
        config = flags.parse(
            qr_sac.CONFIG, [*TINY, "--train.num_epochs=4", f"--workdir={tmp_path / name}", *more]
        )
        run(qr_sac.make_experiment(config), config.workdir)
        return rows_of(tmp_path / name)

    population = "--agent.population=critic_lr:1e-4,critic_lr:1e-2,discount:0.9,discount:0.5"
    rows = rows_with("all", population, "--num_seeds=2")
    assert np.asarray(rows[-1]["train/critic_loss"]).shape == (8,)
    # The last name's values vary fastest, and each member has all seeds.
    alone = rows_with("alone", "--agent.critic_lr=1e-2", "--agent.discount=0.9", "--num_seeds=2")
    for row, own in zip(rows, alone, strict=True):
        np.testing.assert_allclose(
            row["train/critic_loss"][4:6], own["train/critic_loss"], rtol=2e-3
        )
    members = members_of(read_run(tmp_path / "all"))
    assert [
        (member.config["agent.critic_lr"], member.config["agent.discount"]) for member in members
    ] == [(1e-4, 0.9), (1e-4, 0.5), (1e-2, 0.9), (1e-2, 0.5)]
    assert members[2].rows[-1]["train/critic_loss"] == rows[-1]["train/critic_loss"][4:6]
    # The bundle is of the best member, and says which one that is.
    manifest = load_policy(tmp_path / "all" / "policy").manifest
    row = next(row for row in rows if row["epoch"] == manifest["record"]["epoch"])
    best = members[int(np.argmax(row["eval/return"])) // 2]
    for name in ("critic_lr", "discount"):
        assert manifest["network"][name] == best.config[f"agent.{name}"]
    assert not manifest["network"]["population"]


def test_a_run_may_begin_with_the_agent_of_another(tmp_path, caplog):
    def config(seed, *more):
        return flags.parse(qr_sac.CONFIG, [*TINY, "--train.num_epochs=2", f"--seed={seed}", *more])

    source = str(tmp_path / "first")
    begin = f"--train.begin_from={source}"
    run(qr_sac.make_experiment(config(0)), source)
    experiment = qr_sac.make_experiment(config(1, "--agent.critic_lr=0.5", begin))
    state = _with_trained_agent(experiment, experiment.trainer.init(jax.random.key(1)))
    taken = Checkpointer(Path(source) / "checkpoints", read_only=True)
    template = jax.eval_shape(qr_sac.make_experiment(config(0)).trainer.init, jax.random.key(0))
    trained = taken.restore(2, template)
    jax.tree.map(np.testing.assert_array_equal, state.agent.networks, trained.agent.networks)
    assert float(state.agent.hypers.critic_lr) == 0.5
    assert int(state.agent.num_updates) == 0 < int(trained.agent.num_updates)
    caplog.clear()
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        outcome = run(qr_sac.make_experiment(config(1, begin)), tmp_path / "second")
    assert outcome.epochs == 2
    epochs = [m for m in caplog.messages if re.match(r"Compiling (jit\()?epoch\b", m)]
    assert len(epochs) == 1, epochs

    nowhere = config(1, f"--train.begin_from={tmp_path / 'nowhere'}")
    with pytest.raises(
        UserError, match=r"nowhere: there is neither a run with a checkpoint nor a policy$"
    ):
        run(qr_sac.make_experiment(nowhere), tmp_path / "third")
    assert not (tmp_path / "third" / "record.json").exists()
    for other in ("--agent.hidden=9", "--agent.hidden=8,8", "--agent.layer_norm=true"):
        refused = qr_sac.make_experiment(config(1, begin, other))
        with pytest.raises(UserError, match=r"is of another configuration: agent/networks/"):
            _with_trained_agent(refused, refused.trainer.init(jax.random.key(1)))
    with pytest.raises(UserError, match=r"train\.begin_from"):
        run(qr_sac.make_experiment(config(1)), tmp_path / "second")


def test_a_run_may_begin_with_the_actor_of_a_bundle(tmp_path):
    def config(seed, *more):
        arguments = [*TINY, "--train.num_epochs=2", "--agent.actor_average=0.9", *more]
        return flags.parse(qr_sac.CONFIG, [*arguments, f"--seed={seed}"])

    source = tmp_path / "first"
    run(qr_sac.make_experiment(config(0)), source)
    policy = load_policy(source / "policy")
    agent, trained = trained_agent(policy)
    obs = {"state": np.array([0.3, -0.2], np.float32)}
    np.testing.assert_allclose(agent.policy(trained, obs).mode(), policy.act(obs), atol=1e-6)

    begin = f"--train.begin_from={source / 'policy'}"
    experiment = qr_sac.make_experiment(config(1, begin))
    fresh = experiment.trainer.init(jax.random.key(1))
    state = _with_trained_agent(experiment, fresh)
    learnt = trained.networks.actor_average
    jax.tree.map(np.testing.assert_array_equal, state.agent.networks.actor, learnt)
    jax.tree.map(
        np.testing.assert_array_equal, state.agent.networks.critics, fresh.agent.networks.critics
    )
    outcome = run(experiment, tmp_path / "second")
    assert outcome.epochs == 2
    refused = qr_sac.make_experiment(config(1, begin, "--agent.hidden=9"))
    with pytest.raises(UserError, match="networks or observations differ"):
        _with_trained_agent(refused, refused.trainer.init(jax.random.key(1)))
