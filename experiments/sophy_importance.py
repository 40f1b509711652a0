"""Which groups of the car's description a driver of many cars needs, for its actions and its pace.

    ./run python -m experiments.sophy_importance --policy=DIR --cars=catalogue --circuits=asphalt

Is it the drivetrain, as MacAlpine et al. ask of Gran Turismo Sophy? Cars are drawn from a field,
and the policy drives each while it is told the truth about some groups of `CAR_FEATURES`, and for
the rest what another car of the field is. What that is worth, on the same starts each time:

- `steering`, `pedal`: minus the mean squared difference to the action that the policy takes when
  it is told everything, in the states that it then visits. `action` is their sum.
- `pace`: the way of `--seconds` over that of the reference lap's mean pace.
- `off_course`: minus the share of steps that are off course in part.

Shapley values (`core_rl.shapley`) share out among the groups what knowing everything adds to being
told of another car in all: they add up to it exactly, for every car and output, and a group that
the policy does not read gets exactly nothing. It is SAGE (Covert, Lundberg & Lee 2020, arXiv
2004.00668) with the policy's own action and its pace as the loss, but a driver who lacks a group is
wrong about it and does not average over what it could be: no mean within the square, so that few
other cars already give an unbiased value. Where the groups are independent, the shares of the
action are the Shapley effects of its variance (Song, Nelson & Staum 2016). Strumbelj & Kononenko
2014 and Lundberg & Lee 2017 explain one output at one point instead; means of the absolute values
of such do not add up to anything.

What is measured is what being told matters, not what the car does: the state shows part of the car
(how it answers), and mixtures that exist nowhere ask a driver beyond what it was trained on. Who
knows a group but is wrong about what goes along with it may be misled: its value is then negative.

Up to 7 players all coalitions are driven; more, as with `--players=features`, by random orders. The
intervals are bootstraps over cars, whose starts and other cars are drawn anew for each. Circuits
count as given; of fewer than ten cars the intervals are too narrow. `OUT/cars.jsonl` gets the cars
as they finish: the same command again, or one with another `--sample`, drives only what is missing.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from core_rl import flags
from core_rl.env import State, named_obs
from core_rl.errors import UsageError, UserError
from core_rl.policy import Policy, load_policy
from core_rl.report import encode_png
from core_rl.shapley import exact_shapley_values, importance_bars, shapley_values
from core_rl.tracking import JsonlSink
from core_rl.types import Obs
from experiments.sophy_evaluate import env_config_of
from experiments.sophy_matrix import digest_of, read_cells
from projects.reward_llm.judge.resampling import group_counts, interval
from projects.sophy.car_features import CAR_FEATURES, car_features
from projects.sophy.driving import CONTROL_STEP
from projects.sophy.field import CAR_WORDS, COMPOUND_WORDS, listed
from projects.sophy.time_trial import TimeTrial, with_calm_starts

OUTPUTS = ("steering", "pedal", "pace", "off_course")  # K = 4
SHOWN = {"action": ("steering", "pedal"), **{name: (name,) for name in OUTPUTS}}
MAX_EXACT = 7  # players; 128 coalitions
STATES_EVERY = 10  # steps between the states in which actions are compared
RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclasses.dataclass(frozen=True)
class Importance:
    policy: str = ""  # directory of a policy bundle, such as WORKDIR/policy
    cars: str = ""  # the field, as the environment's --env.car; empty: as trained
    circuits: str = "larkspur,thimble,redgully,whitefell"  # as the environment's --env.circuit
    out: str = "runs/sophy_importance"  # directory of the cars' values and the picture
    players: Literal["groups", "features"] = "groups"  # of the game: groups, or each feature
    sample: int = 32  # cars that are driven, drawn from the field; all where it has fewer
    told: int = 2  # other cars of the field that each is told to be
    starts: int = 2  # on each circuit
    seconds: float = 20.0  # that each start is driven for [s]
    orders: int = 4  # random orders of the players for each car, where they are more than 7
    seed: int = 0  # draws cars, starts and orders
    batch: int = 2048  # drives at once, which bounds the memory
    json: bool = False  # print one JSON object

    def __post_init__(self):
        if self.sample < 2:
            raise ValueError(f"sample must be at least 2, got {self.sample}")
        for name in ("told", "starts", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.seconds >= CONTROL_STEP:
            raise ValueError(f"seconds must be at least {CONTROL_STEP}, got {self.seconds}")
        if self.orders < 4 or self.orders % 2:
            raise ValueError(f"orders must be even and at least 4, got {self.orders}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


class Visits(NamedTuple):
    """A car on `T` circuits from `S` starts each, by the driver who is told the truth."""

    start: State  # [T, S]
    obs: Obs  # in the states where actions are compared, [N, T, S, ...]
    action: Array  # there, [N, T, S, 2]


class Explained(NamedTuple):
    """Of one car, with the outputs `K` of `OUTPUTS` on each circuit."""

    value: np.ndarray  # [G, T, K] Shapley values of the players
    base: np.ndarray  # [T, K] told of another car in all
    full: np.ndarray  # [T, K] told the truth


def make_explainer(
    env: TimeTrial, policy: Policy, config: Importance, players: np.ndarray
) -> Callable[[Any, int, np.ndarray, np.ndarray], Explained]:
    """Builds `(params, car_index, own features [F], other cars' [M, F]) -> Explained`, compiled
    once for the same `M`; `players` [F] is whose each feature is, from 0 to G - 1."""
    num_steps = round(config.seconds / CONTROL_STEP)
    num_players, num_circuits = int(players.max()) + 1, len(env.circuits)
    rows_at_once = max(1, config.batch // (num_circuits * config.starts))
    root = jax.random.key(config.seed)
    calm = with_calm_starts(env).config

    def act(params: Any, obs: Obs, row: Array) -> Array:
        told = jnp.broadcast_to(row, (*obs["car"].shape[:-1], len(row)))
        return policy.apply(params, {**obs, "car": told})

    def move(params: Any, state: State, row: Array) -> tuple[State, tuple[Obs, Array]]:
        obs = named_obs(state)
        action = act(params, obs, row)
        return jax.vmap(jax.vmap(env.step))(state, action), (obs, action)

    def start(key: Array, circuit: Array, number: Array, car_index: Array) -> State:
        s, share, speed = jax.random.uniform(key, (3,))
        low, high = calm.start_speed
        return env.start(
            circuit,
            car_index,
            # One start in each of equal parts of the lap.
            (number + s) / config.starts * env.track_of(circuit).length,
            (2.0 * share - 1.0) * calm.start_offset,
            low + (high - low) * speed,
        )

    @jax.jit
    def visit(params: Any, car_index: Array, row: Array) -> Visits:
        keys = jax.random.split(jax.random.fold_in(root, car_index), (num_circuits, config.starts))
        starts = jax.vmap(jax.vmap(start, (0, None, 0, None)), (0, 0, None, None))(
            keys, jnp.arange(num_circuits), jnp.arange(config.starts), car_index
        )
        _, (obs, action) = jax.lax.scan(
            lambda state, _: move(params, state, row), starts, None, length=num_steps
        )
        obs, action = jax.tree.map(lambda leaf: leaf[::STATES_EVERY], (obs, action))
        return Visits(starts, obs, action)

    def worth(params: Any, visits: Visits, row: Array) -> Array:
        """What it is worth to be told `row` [F], [T K]."""
        change = act(params, visits.obs, row) - visits.action

        def drive(carry: tuple[State, Array, Array], _):
            state, pace, off_course = carry
            state, _ = move(params, state, row)
            gains = state.metrics
            return (
                state,
                pace + gains["pace_share"] / num_steps,
                off_course + gains["off_course_steps"] / num_steps,
            ), None

        zero = jnp.zeros((num_circuits, config.starts))
        (_, pace, off_course), _ = jax.lax.scan(
            drive, (visits.start, zero, zero), None, length=num_steps
        )
        driven = jnp.stack([pace, -off_course], axis=-1).mean(axis=1)
        return jnp.concatenate([-jnp.mean(change**2, axis=(0, 2)), driven], axis=-1).ravel()

    def explain(params: Any, car_index: int, x: np.ndarray, others: np.ndarray) -> Explained:
        value = Partial(worth, params, visit(params, car_index, x))
        if num_players <= MAX_EXACT:
            # Powers of two divide the number of coalitions: all go through the same program, in
            # which what does not matter makes no difference, not even of rounding.
            coalitions = 2 ** int(np.log2(max(1, rows_at_once // len(others))))
            values = exact_shapley_values(value, x, others, players, coalitions * len(others))
        else:
            key = jax.random.fold_in(jax.random.fold_in(root, 1), car_index)
            values = shapley_values(value, x, others, players, key, config.orders, rows_at_once)
        value, base, full = jax.device_get((values.value[0], values.base, values.full[0]))
        shape = (num_circuits, len(OUTPUTS))
        return Explained(value.reshape(-1, *shape), base.reshape(shape), full.reshape(shape))

    return explain


def explain_cars(
    env: TimeTrial,
    policy: Policy,
    config: Importance,
    features: np.ndarray,
    players: np.ndarray,
    todo: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Yields a row for each car index of `todo`."""
    explain = make_explainer(env, policy, config, players)
    for car_index in todo:
        others = np.delete(np.arange(len(env.entrants)), car_index)
        random = np.random.default_rng([config.seed, car_index])
        told = random.choice(others, min(config.told, len(others)), replace=False)
        explained = explain(policy.params, car_index, features[car_index], features[told])
        entrant = env.entrants[car_index]
        if not all(np.all(np.isfinite(part)) for part in explained):
            raise UserError(f"{entrant.car}: driving it as another car gives no finite numbers")
        yield {
            "car": entrant.car,
            "compound": entrant.compound,
            "told": [env.entrants[other].car for other in told],
            **{name: part.tolist() for name, part in explained._asdict().items()},
        }


def summarise(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Means over the cars with intervals, by what is shown and by player.

    `value` is in the output's unit, `share` is of the players' sum and None where the interval of
    the sum reaches zero; `first` is how often the player is the first among the resamples.
    """
    counts = group_counts(range(len(rows)), RESAMPLES, 0) / len(rows)

    def estimate(mean: np.ndarray, samples: np.ndarray) -> list[float]:
        """Of numbers [...] and their resamples [R, ...]: mean, low and high, [..., 3]."""
        return np.stack([mean, *interval(samples, CONFIDENCE)], axis=-1).tolist()

    result: dict[str, Any] = {}
    for shown, parts in SHOWN.items():
        picked = [OUTPUTS.index(part) for part in parts]
        values, base, full = (
            # Circuits count alike.
            np.array([row[name] for row in rows])[..., picked].sum(axis=-1).mean(axis=-1)
            for name in Explained._fields
        )  # [cars, G], [cars], [cars]
        mean, samples = values.mean(axis=0), counts @ values
        total = estimate(mean.sum(), samples.sum(axis=1))
        entries: dict[str, Any] = {"value": estimate(mean, samples)}
        if total[1] > 0.0:
            shares = samples / samples.sum(axis=1, keepdims=True)
            entries["share"] = estimate(mean / mean.sum(), shares)
            entries["first"] = np.bincount(samples.argmax(axis=1), minlength=len(mean)) / RESAMPLES
        result[shown] = {
            "told_another": base.mean(),
            "told_the_truth": full.mean(),
            "total": total,
            "players": {
                name: {
                    key: entries[key][index] if key in entries else None
                    for key in ("value", "share", "first")
                }
                for index, name in enumerate(names)
            },
        }
    return result


def table(summary: dict[str, Any]) -> str:
    """Per cent. On top is what matters most for the pace, or the action where no pace is lost."""
    action, pace = summary["action"]["players"], summary["pace"]["players"]
    by = pace if summary["pace"]["total"][1] > 0.0 else action
    off_course = summary["off_course"]["players"]

    def percent(entry: Sequence[float] | None, form: str) -> str:
        if entry is None:
            return "-"
        mean, low, high = (format(100.0 * number, form) for number in entry)
        return f"{mean} [{low}, {high}]"

    def first(entry: float | None) -> str:
        return "-" if entry is None else f"{entry:.0%}"

    lines = [
        ("", "action", "", "pace", "", "", "off course"),
        ("", "share [%]", "first", "worth [% of reference]", "share [%]", "first", "worth [%]"),
    ]
    for name in sorted(by, key=lambda name: -by[name]["value"][0]):
        lines.append(
            (
                name,
                percent(action[name]["share"], "z.0f"),
                first(action[name]["first"]),
                percent(pace[name]["value"], "z.2f"),
                percent(pace[name]["share"], "z.0f"),
                first(pace[name]["first"]),
                percent(off_course[name]["value"], "z.2f"),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def conclusion(summary: dict[str, Any]) -> str:
    """One line on what it does to the driver to be told of another car."""
    change = np.sqrt(max(summary["action"]["total"][0], 0.0))
    lost, low, high = (100.0 * number for number in summary["pace"]["total"])
    true, false = (100.0 * summary["pace"][name] for name in ("told_the_truth", "told_another"))
    return (
        f"told of another car, the action changes by {change:.3f} (root mean square of both), and "
        f"{true:.1f} % of the reference's pace become {false:.1f} %: {lost:.2f} % [{low:.2f}, "
        f"{high:.2f}] are lost"
    )


def picture(summary: dict[str, Any], title: str) -> Figure:
    """Bars of what each player is worth to the action and to the pace, with shares beside them."""
    panels = (
        ("action", 1.0, "Action", "squared change avoided [of full scale²]"),
        ("pace", 100.0, "Pace", "pace gained [% of the reference's]"),
    )
    num_players = len(summary["pace"]["players"])
    figure = Figure((9.6, 1.5 + 0.34 * num_players), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    for axes, (shown, scale, name, label) in zip(figure.subplots(1, 2), panels, strict=True):
        players = summary[shown]["players"]
        sizes, low, high = scale * np.array([player["value"] for player in players.values()]).T
        names = [
            one if player["share"] is None else f"{one}  {player['share'][0]:z.0%}"
            for one, player in players.items()
        ]
        whiskers = np.maximum([sizes - low, high - sizes], 0.0)  # rounding may leave less than none
        importance_bars(axes, names, sizes, whiskers)
        axes.set_ylim(num_players - 0.4, -0.6)
        axes.set_title(f"{name}: what knowing it is worth", loc="left", fontsize=10)
        axes.set_xlabel(f"{label}, {CONFIDENCE:.0%} interval over cars", fontsize=8.5)
    return figure


def field_of(policy: Policy, config: Importance) -> TimeTrial:
    """Raises UsageError for a policy that is not told of its car, and a field of one."""
    if "car" not in policy.manifest["observation"]:
        read = ", ".join(policy.manifest["observation"])
        raise UsageError(
            f"--policy: {config.policy} is not told of its car: it reads {read} and not car"
        )
    env = env_config_of(policy, config.circuits, config.cars)
    if len(listed(env.car, CAR_WORDS)) * len(listed(env.compound, COMPOUND_WORDS)) < 2:
        raise UsageError(f"--cars={env.car} is a single car, and a driver is told of another")
    return TimeTrial(dataclasses.replace(env, describe=True))


def players_of(players: str) -> tuple[list[str], np.ndarray]:
    """Their names [G], and the player of each feature [F]."""
    owner = list(CAR_FEATURES.values() if players == "groups" else CAR_FEATURES)
    names = list(dict.fromkeys(owner))
    return names, np.array([names.index(name) for name in owner])


def main(config: Importance) -> int:
    if not config.policy:
        raise UsageError("--policy=DIR is missing: name the directory of a policy bundle")
    policy = load_policy(Path(config.policy))
    env = field_of(policy, config)
    names, players = players_of(config.players)
    features = np.asarray(jax.jit(jax.vmap(car_features))(env.cars))
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "cars.jsonl"
    # What the values of a car depend on.
    settings = {
        "cars": env.config.car,
        "circuits": env.config.circuit,
        **{
            name: getattr(config, name)
            for name in ("players", "told", "starts", "seconds", "orders", "seed")
        },
    }
    digest = digest_of(config.policy)
    earlier = read_cells(path, digest)
    for name, value in settings.items():
        if any(row["settings"][name] != value for row in earlier):
            raise UsageError(f"--out: {path} was made with other {name}; name another directory")
    # Of a larger sample, a smaller one is the beginning.
    drawn = np.random.default_rng(config.seed).permutation(len(env.entrants))[: config.sample]
    there = {(row["car"], row["compound"]): row for row in earlier}
    todo = [int(index) for index in drawn if tuple(env.entrants[index]) not in there]
    began = time.monotonic()
    sink = JsonlSink(path)
    rows = explain_cars(env, policy, config, features, players, todo)
    for count, row in enumerate(rows, start=1):
        sink.write({"policy": digest, "settings": settings, **row})
        there[row["car"], row["compound"]] = row
        took = time.monotonic() - began
        left = took / count * (len(todo) - count)
        full, base = (100.0 * np.mean(np.array(row[key])[:, 2]) for key in ("full", "base"))
        print(
            f"{count} of {len(todo)} cars, {took:.0f} s, {left:.0f} s left: {row['car']} "
            f"{full:.1f} % of the reference's pace, {base:.1f} % told of another car",
            file=sys.stderr,
        )
    sink.close()
    summary = summarise([there[tuple(env.entrants[index])] for index in drawn], names)
    title = f"{len(drawn)} of {len(env.entrants)} cars, circuits: {len(env.circuits)}"
    (out / "importance.png").write_bytes(encode_png(picture(summary, title)))
    if config.json:
        counts = {"cars": len(drawn), "field": len(env.entrants)}
        print(json.dumps({"settings": settings, **counts, "outputs": summary}))
    else:
        print(table(summary))
        print(conclusion(summary))
        print(f"{path}, {out / 'importance.png'}")
    return 0


if __name__ == "__main__":
    flags.main(main, Importance())
