"""Measures what users wait for, side by side in one process, and prints a table.

    ./run bench
    ./run bench --json=bench.json
    ./run bench --only=steps,decisions
    ./run bench --only=races --picture=races.png

Learning: QR-SAC's training loop and brax's own SAC (`brax.training.agents.sac`, unmodified) take
turns on the same environment, which costs nothing, with the same sizes: hidden layers 256 x 256,
batch 256, 64 environments, 8 updates per step; ours with 32 quantiles, brax's with scalar critics.
Simulation: control steps of the time trial (20 sub-steps of 5 ms) and of the return task (8 sweeps
of 4 ms, joints at 1 kHz). Races: the same of 64 races with more and more cars, whose drivers do at
random what a policy may, counted per car, a share of the races on each core; `--picture=FILE`
draws it. Decisions: the committed
policies, one observation at a time, as a control loop would ask them. Plans: the racing planner
around the committed driver, one state at a time; and plain MPPI of the same size, ours and the
package pytorch-mppi where it is installed, with the same network as dynamics and the same cost.
Rewards: candidates of the reward search on the time trial, eight side by side in one process
against one alone. Verdicts: random reward programs through the validator, its workers' start
included. Start: processes of their own, without and with compilation cache. The median of the
rounds is shown, with the range; of decisions and plans the median and the 99th percentile.
"""

import dataclasses
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax.training.agents.sac import train as brax_sac
from matplotlib.figure import Figure

from core_rl import flags
from core_rl.devices import over_devices, use_all_cores
from core_rl.distributions import TanhNormal
from core_rl.dynamics import load_dynamics
from core_rl.env import Env, State, num_agents
from core_rl.launch import trained_agent
from core_rl.policy import load_policy
from core_rl.qr_sac import QRSACConfig, make_qr_sac
from core_rl.report import encode_png
from core_rl.residual_mppi import ResidualMPPIConfig, make_residual_mppi
from core_rl.reward_task import load_task
from core_rl.train import TrainConfig, make_trainer
from experiments import sophy_race
from experiments.customise import MODEL_FILE
from experiments.sophy_evaluate import env_config_of
from experiments.sophy_time_trial import CONFIG
from projects.ace.bank import BankConfig
from projects.ace.return_env import ReturnConfig, ReturnTask
from projects.reward_llm import language
from projects.reward_llm.compile import make_bank, padded
from projects.reward_llm.population import make_population
from projects.reward_llm.search.baselines import random_program
from projects.reward_llm.validate import Job, Validator
from projects.sophy.addons import parse_addon
from projects.sophy.planning import RACING, make_planning_driver
from projects.sophy.race_env import RaceEnv
from projects.sophy.time_trial import TimeTrial

OBS_SIZE, ACTION_SIZE = 128, 2
NUM_ENVS, UPDATES_PER_STEP, BATCH_SIZE, HIDDEN = 64, 8, 256, (256, 256)
CAPACITY = 65_536
PARTS = ("start", "learning", "steps", "races", "decisions", "plans", "rewards", "verdicts")
POLICIES = {
    "time trial": "projects/sophy/policies/time_trial",
    "return": "projects/ace/policies/return",
}
RACES, FIELDS = 64, (2, 4, 8, 14, 20)  # races side by side, and cars in each
NUM_DECISIONS = 3000
NUM_VERDICTS = 127
NUM_REWARDS, REWARD_EPOCHS = 8, 120  # candidates and epochs of a candidate in the reward search
NUM_PLANS = 1000
PLAN_SIZES = ((256, 8), (512, 10), (1024, 10), (4096, 10))  # samples and horizon of plain MPPI
# Rounds, samples and horizon of the racing planner.
RACING_SIZES = ((2, 64, 12), (2, 128, 12), (4, 128, 12), (4, 256, 12), (1, 512, 12))
PLAIN_STATE, PLAIN_ACTION, PLAIN_HIDDEN = 34, 2, 128  # sizes of the motion model of a car


@dataclasses.dataclass(frozen=True)
class Bench:
    rounds: int = 2  # turns that each of the compared programs takes
    updates: int = 1024  # updates per turn
    envs: tuple[int, ...] = (1, 64, 1024)  # environments simulated side by side
    only: tuple[
        str, ...
    ] = ()  # parts, such as learning,rewards; a wrong name lists them; empty: all
    json: str = ""  # file for the results, machine-readable
    picture: str = ""  # file for a picture of what races cost by their number of cars

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if self.updates < UPDATES_PER_STEP:
            raise ValueError(f"updates must be at least {UPDATES_PER_STEP}, got {self.updates}")
        if not self.envs or min(self.envs) < 1:
            raise ValueError(f"envs must be positive numbers, got {self.envs}")
        for name in self.only:
            if name not in PARTS:
                raise ValueError(f"only must be among {', '.join(PARTS)}, got {name!r}")
        if self.picture and self.only and "races" not in self.only:
            raise ValueError("picture is of the part races, which only leaves out")


class FreeEnv(Env):
    """An environment that costs nothing: what is left is learning."""

    def reset(self, rng: jax.Array) -> State:
        obs = jax.random.normal(rng, (OBS_SIZE,))
        return State(None, obs, jnp.zeros(()), jnp.zeros(()))

    def step(self, state: State, action: jax.Array) -> State:
        obs = 0.99 * jnp.roll(state.obs, 1) + 0.01 * jnp.sum(action)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return state.replace(obs=obs, reward=-jnp.mean(obs**2))  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def observation_size(self) -> int:
        return OBS_SIZE

    @property
    def action_size(self) -> int:
        return ACTION_SIZE

    @property
    def backend(self) -> str:
        return "none"


def timed(function: Callable[[], Any]) -> float:
    began = time.monotonic()
    jax.block_until_ready(function())
    return time.monotonic() - began


def core_updates(num_quantiles: int, num_updates: int) -> Callable[[], float]:
    """A function that trains for a turn and returns updates per second."""
    env = FreeEnv()
    config = QRSACConfig(
        hidden=HIDDEN, batch_size=BATCH_SIZE, num_quantiles=num_quantiles, n_step=1
    )
    agent = make_qr_sac(config, ACTION_SIZE)
    train = TrainConfig(
        num_envs=NUM_ENVS,
        steps_per_epoch=num_updates // UPDATES_PER_STEP,
        updates_per_step=UPDATES_PER_STEP,
        warmup_steps=16,
        replay_capacity=CAPACITY,
    )
    trainer = make_trainer(
        env,
        agent,
        train,
        episode_length=1000,
        batch_size=BATCH_SIZE,
        n_step=1,
    )
    epoch = jax.jit(trainer.epoch, donate_argnums=0)
    state, _ = epoch(jax.jit(trainer.init)(jax.random.key(0)))

    def turn() -> float:
        nonlocal state
        began = time.monotonic()
        state, _ = jax.block_until_ready(epoch(state))
        return train.updates_per_epoch / (time.monotonic() - began)

    return turn


def brax_updates(num_updates: int) -> list[float]:
    """brax's `train` for a warm-up epoch and two more: their updates per second."""
    speeds = []
    brax_sac.train(
        environment=FreeEnv(),
        num_timesteps=3 * num_updates // UPDATES_PER_STEP * NUM_ENVS,
        episode_length=1000,
        num_envs=NUM_ENVS,
        num_eval_envs=1,
        num_evals=4,
        learning_rate=3e-4,
        discounting=0.99,
        batch_size=BATCH_SIZE,
        normalize_observations=True,
        min_replay_size=1024,
        max_replay_size=CAPACITY,
        grad_updates_per_step=UPDATES_PER_STEP,
        max_devices_per_host=1,
        progress_fn=lambda _, metrics: speeds.append(metrics.get("training/sps")),
    )
    # The first evaluation precedes training and the first epoch compiles.
    return [sps / NUM_ENVS * UPDATES_PER_STEP for sps in speeds[2:]]


def env_steps(
    env: Env, num_envs: int, num_rounds: int, compiled: Callable[..., Any] = jax.jit
) -> list[float]:
    """Control steps per second with random actions; those of every agent count."""
    agents = num_agents(env)
    shape = (*(() if agents is None else (agents,)), env.action_size)
    num_steps = max(20, 4096 // num_envs)

    @compiled
    def drive(state: State, keys: jax.Array) -> State:
        def step(state: State, number: jax.Array):
            now = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            action = jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-1.0))(now)
            return jax.vmap(env.step)(state, action), None

        return jax.lax.scan(step, state, jnp.arange(num_steps))[0]

    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), num_envs))
    keys = jax.random.split(jax.random.key(1), (num_rounds + 1, num_envs))
    timed(lambda: drive(state, keys[0]))
    steps = num_steps * num_envs * (agents or 1)
    return [steps / timed(lambda key=key: drive(state, key)) for key in keys[1:]]


def race_env(num_cars: int) -> RaceEnv:
    """All cars there and rolling."""
    config = dataclasses.replace(sophy_race.CONFIG.env, num_cars=num_cars, start="rolling")
    return RaceEnv(config)


def race_steps(rounds: int) -> dict[str, dict[str, float]]:
    """Control steps of cars per second by the number of cars in a race, a share of the races on
    each core."""
    return {
        str(num_cars): median_and_range(env_steps(race_env(num_cars), RACES, rounds, over_devices))
        for num_cars in FIELDS
    }


def race_picture(speeds: dict[str, dict[str, float]]) -> Figure:
    """What `race_steps` found: steps of cars per second, and microseconds per step of a race."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    cars = np.array([int(number) for number in speeds])
    low, median, high = (
        np.array([by[name] for by in speeds.values()]) for name in ("min", "median", "max")
    )
    left.errorbar(cars, median, [median - low, high - median], fmt="o-", capsize=3.0)
    left.axhline(30_000.0, color="0.6", linewidth=0.8, linestyle="--")
    left.text(cars[-1], 30_500.0, "30,000", ha="right", fontsize=8, color="0.4")
    left.set_ylabel("car steps per second")
    right.plot(cars, 1e6 * cars / median, "o-")
    right.set_ylabel("µs of a race's control step")
    for axes in (left, right):
        axes.set_xlabel("cars in a race")
        axes.set_ylim(bottom=0.0)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{RACES} races side by side", fontsize=10)
    return figure


def decision_times(bundle: Path) -> dict[str, float]:
    """Milliseconds of one decision of a policy bundle on the host, median and 99th percentile."""
    policy = load_policy(bundle)
    entries = policy.manifest["observation"].items()
    obs = {name: np.zeros(entry["shape"], entry["dtype"]) for name, entry in entries}
    for _ in range(100):
        timed(lambda: policy.act(obs))
    return in_milliseconds([timed(lambda: policy.act(obs)) for _ in range(NUM_DECISIONS)])


def in_milliseconds(seconds: list[float]) -> dict[str, float]:
    median, slow = (1e3 * float(value) for value in np.percentile(seconds, [50, 99]))
    return {"median": median, "p99": slow}


def racing_plan_times() -> dict[str, dict[str, float]]:
    """Milliseconds of one plan of the racing planner for a margin, by its sizes."""
    root = Path(__file__).parents[1]
    policy = load_policy(root / POLICIES["time trial"])
    env = TimeTrial(env_config_of(policy))
    agent, agent_state = trained_agent(policy)
    model, model_state, _ = load_dynamics(MODEL_FILE)
    drive = jax.jit(env.reset)(jax.random.key(0)).pipeline_state
    times = {}
    for rounds, samples, horizon in RACING_SIZES:
        planner = dataclasses.replace(
            RACING, num_iterations=rounds, num_samples=samples, horizon=horizon
        )
        addon = parse_addon(env, "margin:0.5")
        driver = make_planning_driver(planner, env, agent, model, addon)
        planned = driver.init(model_state, agent_state)
        plan = jax.jit(driver.plan)
        keys = list(jax.random.split(jax.random.key(0), NUM_PLANS + 5))
        last = driver.control.memory
        seconds = [timed(lambda key=key: plan(planned, drive, key, last)) for key in keys]  # noqa: B023
        times[f"{rounds} x {samples} samples, {horizon} steps"] = in_milliseconds(seconds[5:])
    return times


def plain_networks() -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of the dynamics that both plain planners use, three hidden layers."""
    rng = np.random.default_rng(0)
    sizes = [PLAIN_STATE + PLAIN_ACTION, *[PLAIN_HIDDEN] * 3, PLAIN_STATE]
    return [
        (
            rng.normal(size=(a, b), scale=1.0 / np.sqrt(a)).astype(np.float32),
            np.zeros(b, np.float32),
        )
        for a, b in itertools.pairwise(sizes)
    ]


def plain_plans(samples: int, horizon: int) -> Callable[[], float]:
    """Our planner without a prior: a function that plans once and returns the seconds it took."""
    layers = [tuple(map(jnp.asarray, layer)) for layer in plain_networks()]

    def dynamics(state: jax.Array, action: jax.Array) -> jax.Array:
        x = jnp.concatenate([state, action])
        for kernel, bias in layers[:-1]:
            x = jnp.tanh(x @ kernel + bias)
        return state + 0.1 * (x @ layers[-1][0] + layers[-1][1])

    config = ResidualMPPIConfig(
        variant="full", horizon=horizon, num_samples=samples, temperature=1.0, noise_std=(1.0,)
    )
    still = TanhNormal(jnp.zeros(PLAIN_ACTION), jnp.zeros(PLAIN_ACTION))
    planner = make_residual_mppi(
        config,
        dynamics,
        lambda state: still,
        lambda state, action, after: -jnp.sum(after**2) - jnp.sum(action**2),
        reward=lambda state, action, after: jnp.zeros(()),
    )
    state = jnp.ones(PLAIN_STATE)
    numbers = planner.init(state)
    plan = jax.jit(planner.plan)
    keys = itertools.cycle(jax.random.split(jax.random.key(0), 64))
    timed(lambda: plan(numbers, state, next(keys)))
    return lambda: timed(lambda: plan(numbers, state, next(keys)))


def torch_plans(samples: int, horizon: int) -> Callable[[], float]:
    """pytorch-mppi on the same problem; raises ImportError where it is not installed."""
    import torch  # pyright: ignore[reportMissingImports]
    from pytorch_mppi import MPPI  # pyright: ignore[reportMissingImports]

    layers = [tuple(map(torch.from_numpy, layer)) for layer in plain_networks()]

    def dynamics(state, action):
        x = torch.cat([state, action], dim=-1)
        for kernel, bias in layers[:-1]:
            x = torch.tanh(torch.addmm(bias, x, kernel))
        return state + 0.1 * torch.addmm(layers[-1][1], x, layers[-1][0])

    def cost(state, action):
        # Of the state before the step: the package does not tell the one after.
        return (state**2).sum(-1) + (action**2).sum(-1)

    planner = MPPI(
        dynamics,
        cost,
        PLAIN_STATE,
        torch.eye(PLAIN_ACTION),
        num_samples=samples,
        horizon=horizon,
        lambda_=1.0,
        u_min=-torch.ones(PLAIN_ACTION),
        u_max=torch.ones(PLAIN_ACTION),
    )
    state = torch.ones(PLAIN_STATE)
    with torch.inference_mode():
        planner.command(state)

    def once() -> float:
        began = time.monotonic()
        with torch.inference_mode():
            planner.command(state)
        return time.monotonic() - began

    return once


def plain_plan_times(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds per plan by planner and size; the planners take turns."""
    results: dict[str, dict[str, dict[str, float]]] = {}
    for samples, horizon in PLAN_SIZES:
        programs = {"ours": plain_plans(samples, horizon)}
        try:
            programs["pytorch-mppi"] = torch_plans(samples, horizon)
        except ImportError:
            print("pytorch-mppi is not installed: only ours", file=sys.stderr)
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(rounds):
            for name, once in programs.items():
                seconds[name] += [once() for _ in range(NUM_PLANS // 4)]
        for name, values in seconds.items():
            size = f"{samples} samples, {horizon} steps"
            results.setdefault(name, {})[size] = in_milliseconds(values)
    return results


def start_up(cache: str, workdir: str) -> tuple[float, float]:
    """Seconds from the process's start to the end of the default run's first update, and the
    run's peak memory [MB]; the epoch is cut to one step, everything else is as by default."""
    command = [
        sys.executable,
        "-m",
        "experiments.sophy_time_trial",
        f"--workdir={workdir}",
        "--train.num_epochs=1",
        "--train.steps_per_epoch=1",
        "--run.wandb.mode=disabled",
    ]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    # The parent's record of its children's memory is a maximum over all of them, so each is asked.
    code = (
        "import resource,subprocess,sys;"
        "subprocess.run(sys.argv[1:],check=True,stdout=subprocess.DEVNULL,stderr=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    began = time.time()
    result = subprocess.run(
        [sys.executable, "-c", code, *command],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    rows = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    row = json.loads(rows[0])
    return row["time/unix"] - began, int(result.stdout) / 1024


def train_rewards(num_candidates: int, num_epochs: int) -> None:
    """Trains the human reward `num_candidates` times side by side, as a reward search does, and
    prints the seconds of its epochs after the first."""
    task = load_task("sophy:time_trial")
    names = list(task.features)
    program = language.check(task.human, names)
    population = make_population(task, num_epochs)
    bank = make_bank([program] * num_candidates, names)
    weights = padded([[1.0] * len(program.terms)] * num_candidates, bank.num_terms)
    state = population.init([jax.random.key(seed) for seed in range(num_candidates)])
    state = population.relabel(state, bank, weights)
    state, _ = population.epoch(state, bank, weights)
    began = time.monotonic()
    for _ in range(num_epochs - 1):
        state, _ = population.epoch(state, bank, weights)
    jax.block_until_ready(state.agent)
    print(time.monotonic() - began)


def reward_times(num_epochs: int) -> dict[str, dict[str, float]]:
    """Seconds of whole processes, compilation and all, and of their epochs after the first: one
    candidate with an empty compilation cache, one with the cache that the first has filled, and
    eight side by side with an empty cache."""
    times = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, number, cache in (
            ("alone, cold", 1, "one"),
            ("alone", 1, "one"),
            ("side by side, cold", NUM_REWARDS, "many"),
        ):
            code = f"from experiments.bench import train_rewards as t; t({number}, {num_epochs})"
            began = time.monotonic()
            result = subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{directory}/{cache}"},
                check=True,
                capture_output=True,
                text=True,
            )
            seconds = time.monotonic() - began
            times[name] = {"process": seconds, "epochs": float(result.stdout.split()[-1])}
    return times


def verdict_seconds() -> dict[str, float]:
    """Seconds for `NUM_VERDICTS` different replies that all pass every stage or fail the last."""
    features = load_task("sophy:time_trial").features
    random = np.random.default_rng(0)
    replies = [f"```python\n{random_program(random, features)}\n```" for _ in range(NUM_VERDICTS)]
    began = time.monotonic()
    with Validator() as validator:
        verdicts = validator.judge([Job(reply, features) for reply in replies])
    seconds = time.monotonic() - began
    return {"seconds": seconds, "accepted": float(sum(verdict.accept for verdict in verdicts))}


def median_and_range(values: list[float]) -> dict[str, float]:
    return {
        "median": float(np.median(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }


def measure(config: Bench) -> dict[str, Any]:
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    parts = config.only or PARTS
    if "races" in parts:
        use_all_cores()  # all else runs on the first of them
    results: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    if "start" in parts:
        say("start-up, with and without compilation cache")
        with tempfile.TemporaryDirectory() as directory:
            cold = start_up(f"{directory}/cache", f"{directory}/cold")
            warm = start_up(f"{directory}/cache", f"{directory}/warm")
        results["first_update_seconds"] = {"cold": cold[0], "warm": warm[0]}
        results["peak_memory_mb"] = max(cold[1], warm[1])

    if "learning" in parts:
        say("updates per second: QR-SAC, scalar SAC and brax's SAC in turn")
        programs = {
            "qr_sac": core_updates(32, config.updates),
            "sac": core_updates(1, config.updates),
        }
        speeds: dict[str, list[float]] = {"qr_sac": [], "sac": [], "brax_sac": []}
        for _ in range(config.rounds):
            for name, turn in programs.items():
                speeds[name] += [turn(), turn()]
            speeds["brax_sac"] += brax_updates(config.updates)
        results["updates_per_second"] = {name: median_and_range(v) for name, v in speeds.items()}
        results["qr_sac_over_brax_sac"] = float(
            np.median(speeds["qr_sac"]) / np.median(speeds["brax_sac"])
        )

    if "steps" in parts:
        say("control steps per second of the time trial and of the return task")
        balls = BankConfig(num_balls=512)
        envs = {
            "time trial": TimeTrial(CONFIG.env),
            "return": ReturnTask(ReturnConfig(balls=balls)),
        }
        results["control_steps_per_second"] = {
            name: {str(n): median_and_range(env_steps(env, n, config.rounds)) for n in config.envs}
            for name, env in envs.items()
        }
    if "races" in parts:
        say("control steps per second of cars in races")
        results["race_steps_per_second"] = race_steps(config.rounds)
    if "decisions" in parts:
        say("milliseconds per decision of the committed policies")
        root = Path(__file__).parents[1]
        results["decision_ms"] = {n: decision_times(root / path) for n, path in POLICIES.items()}
    if "plans" in parts:
        say("milliseconds per plan")
        results["racing_plan_ms"] = racing_plan_times()
        results["plain_plan_ms"] = plain_plan_times(config.rounds)
    if "rewards" in parts:
        say("rewards trained alone and side by side")
        results["reward_seconds"] = reward_times(REWARD_EPOCHS)
    if "verdicts" in parts:
        say("verdicts on reward programs")
        results["verdicts"] = verdict_seconds()
    results["bench_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return results


def table(results: dict[str, Any]) -> str:
    rows = [("figure", "median", "range")]

    def row(label: str, value: dict[str, float], digits: int = 0):
        low, high = (f"{value[name]:,.{digits}f}" for name in ("min", "max"))
        rows.append((label, f"{value['median']:,.{digits}f}", f"{low} - {high}"))

    names = {
        "qr_sac": "QR-SAC, 32 quantiles: updates/s",
        "sac": "our scalar SAC: updates/s",
        "brax_sac": "brax's SAC: updates/s",
    }
    if "updates_per_second" in results:
        for name, label in names.items():
            row(label, results["updates_per_second"][name])
        rows.append(("QR-SAC over brax's SAC", f"{results['qr_sac_over_brax_sac']:.2f}", ""))
    for name, by_number in results.get("control_steps_per_second", {}).items():
        for number, value in by_number.items():
            row(f"{name}, {number} environments: control steps/s", value)
    for number, value in results.get("race_steps_per_second", {}).items():
        row(f"{RACES} races of {number} cars: control steps of cars/s", value)
    for name, times in results.get("decision_ms", {}).items():
        shown = f"{times['median']:.3f}", f"99 %: {times['p99']:.3f}"
        rows.append((f"{name}, one decision of the policy [ms]", *shown))
    plans = {"racing planner": results.get("racing_plan_ms", {})}
    plans |= {f"plain MPPI, {name}": v for name, v in results.get("plain_plan_ms", {}).items()}
    for name, sizes in plans.items():
        for size, times in sizes.items():
            shown = f"{times['median']:.2f}", f"99 %: {times['p99']:.2f}"
            rows.append((f"{name}, {size}: one plan [ms]", *shown))
    if "reward_seconds" in results:
        times = results["reward_seconds"]
        for name, part in times.items():
            shown = f"{part['process']:.1f}", f"its epochs: {part['epochs']:.1f}"
            rows.append((f"rewards {name}: process [s]", *shown))
        many = times["side by side, cold"]
        for name in ("alone, cold", "alone"):
            ratios = [many[part] / (NUM_REWARDS * times[name][part]) for part in many]
            shown = f"{ratios[0]:.2f}", f"of the epochs: {ratios[1]:.2f}"
            rows.append((f"{NUM_REWARDS} side by side over {NUM_REWARDS} x {name}", *shown))
    if "verdicts" in results:
        found = results["verdicts"]
        shown = f"{found['seconds']:.1f}", f"{found['accepted']:.0f} accepted"
        rows.append((f"verdicts on {NUM_VERDICTS} reward programs [s]", *shown))
    if "first_update_seconds" in results:
        start = results["first_update_seconds"]
        rows.append(("start to first update, cold cache [s]", f"{start['cold']:.1f}", ""))
        rows.append(("start to first update, warm cache [s]", f"{start['warm']:.1f}", ""))
        rows.append(("peak memory of the default run [MB]", f"{results['peak_memory_mb']:.0f}", ""))
    rows.insert(1, ("---", "---", "---"))
    return "\n".join(f"| {a} | {b} | {c} |" for a, b, c in rows)


def main(config: Bench) -> int:
    if config.json:
        path = Path(config.json).absolute()
        path.touch()  # an unwritable place is known before the minutes are spent
    if config.picture:
        Path(config.picture).touch()
    results = measure(config)
    print(f"{results['device']}, {results['cores']} cores, jax {results['jax']}, {results['date']}")
    print(table(results))
    if config.json:
        Path(config.json).write_text(json.dumps(results, indent=1) + "\n")
    if config.picture:
        picture = race_picture(results["race_steps_per_second"])
        Path(config.picture).write_bytes(encode_png(picture))
    return 0


if __name__ == "__main__":
    flags.main(main, Bench())
