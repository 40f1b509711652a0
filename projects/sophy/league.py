"""A league of drivers: who sits in the slots of a race that the learner does not drive.

`LeagueRace` is a race in which every episode draws a situation (`scenarios`) and a driver for each
opponent: the learner itself, a scripted driver of drawn skill (`drivers`), or a policy that was
frozen in a bundle. Their actions replace those that are handed in for their slots, and
`State.info["action"]` tells what was done.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from core_rl import flags
from core_rl.env import State, Wrapper, named_obs
from core_rl.errors import UserError
from core_rl.policy import Policy, load_policy
from core_rl.types import Obs
from projects.sophy.drivers import LEAST_SKILL, MOST_SKILL, level_of, scripted_actions
from projects.sophy.field import CAR_WORDS, listed
from projects.sophy.path_following import slowed
from projects.sophy.race_env import RaceEnv, race_of
from projects.sophy.scenarios import SCENARIOS, draw_setting, origins, table

LEARNER, SCRIPTED, FROZEN = 0, 1, 2  # the drivers; frozen policies count on from FROZEN

# Levels of difficulty that a policy is raced at, as shares of the speed that it asks for.
DIFFICULTY = {"beginner": 0.8, "amateur": 0.85, "club": 0.9, "pro": 0.95, "champion": 1.0}


@dataclasses.dataclass(frozen=True)
class LeagueConfig:
    scenarios: tuple[tuple[str, float], ...] = (
        ("alone", 0.06),
        ("duel", 0.08),
        ("grid", 0.35),
        ("pack", 0.14),
        ("slow_ahead", 0.06),
        ("chase", 0.12),
        ("slipstream", 0.06),
        ("corner", 0.06),
        ("attacked", 0.04),
        ("rejoin", 0.03),
    )  # how often episodes are which of them
    self_play: float = 0.5  # share of opponents that the learner drives itself
    skill: tuple[float, float] = (0.0, 1.0)  # of scripted opponents, 0 beginner to 1 expert
    frozen: tuple[str, ...] = ()  # policies that drive a part of the rest, see `load_racer`
    frozen_share: float = 0.5  # that part

    def __post_init__(self):
        for name, share in self.scenarios:
            if name not in SCENARIOS:
                allowed = ", ".join(SCENARIOS)
                raise ValueError(f"scenarios: there is none named {name!r}; allowed are {allowed}")
            if not share > 0:
                raise ValueError(f"scenarios: the share of {name} must be positive, got {share}")
        if not self.scenarios:
            raise ValueError("scenarios: name at least one")
        if len({name for name, _ in self.scenarios}) < len(self.scenarios):
            raise ValueError(f"scenarios: each at most once, got {self.scenarios}")
        low, high = self.skill
        if not LEAST_SKILL <= low <= high <= MOST_SKILL:
            raise ValueError(
                f"skill must be two rising numbers from {LEAST_SKILL} to {MOST_SKILL}, "
                f"got {self.skill}"
            )
        for name in ("self_play", "frozen_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


class LeagueRace(Wrapper):
    """See the module's text. `State.info` holds `scenario` [], the number in the configuration's
    list, and of each slot [M] `driver`, `skill`, `action`, and whether the learner drove it in the
    last step (`learns`).

    Raises UserError for a frozen policy that cannot drive this race.
    """

    def __init__(self, env: RaceEnv, config: LeagueConfig):
        if env.solo.config.steering != "line":
            raise UserError("--env.solo.steering: a league races with steering=line")
        if env.config.laps:
            # Who reaches the flag earns nothing more: a learner would wait before it.
            raise UserError(f"--env.laps={env.config.laps}: a league races without end, laps=0")
        if env.config.start != "grid" or env.config.field:
            raise UserError(
                "--env.start and --env.field: what episodes of a league begin with is drawn, see "
                "--league.scenarios"
            )
        if env.config.pits.stops:
            raise UserError("--env.pits.stops: a league races without stops")
        super().__init__(env)
        self.race, self.league = env, config
        self.names = tuple(name for name, _ in config.scenarios)
        self.table = table(self.names)
        shares = np.array([share for _, share in config.scenarios])
        self.chances = jnp.asarray(shares / shares.sum(), jnp.float32)
        self.origins = origins(env)
        self.frozen = [load_racer(path, env) for path in config.frozen]

    def reset(self, rng: Array) -> State:
        key, rng = jax.random.split(rng)
        return self.begin(jax.random.choice(key, len(self.names), p=self.chances), rng)

    def begin(self, scenario: Array, rng: Array) -> State:
        """A race that begins in situation number `scenario` [] of the configuration's list."""
        keys = jax.random.split(rng, 5)
        row = jax.tree.map(lambda leaf: leaf[scenario], self.table)
        state = self.race.start(*draw_setting(self.race, row, self.origins, keys[0]))
        shape, config = (self.race.config.num_cars,), self.league
        learner = jax.random.uniform(keys[1], shape) < config.self_play * ~row.scripted
        driver = jnp.where(learner, LEARNER, SCRIPTED)
        if self.frozen:
            which = jax.random.randint(keys[2], shape, FROZEN, FROZEN + len(self.frozen))
            is_frozen = jax.random.uniform(keys[3], shape) < config.frozen_share * ~row.scripted
            driver = jnp.where(~learner & is_frozen, which, driver)
        driver = driver.at[0].set(LEARNER)
        # A scenario's own bounds are shares of the league's.
        (low, high), (lowest, highest) = row.skill, config.skill
        skill = low + (high - low) * jax.random.uniform(keys[4], shape)
        info = {
            "scenario": scenario,
            "driver": driver,
            "skill": lowest + (highest - lowest) * skill,
            "action": jnp.zeros((*shape, self.action_size)),
            "learns": race_of(state).present & (driver == LEARNER),
        }
        return state.replace(info=info)  # pyright: ignore[reportAttributeAccessIssue]

    def step(self, state: State, action: Array) -> State:
        driver = state.info["driver"][:, None]
        scripted = scripted_actions(self.race, race_of(state), level_of(state.info["skill"]))
        action = jnp.where(driver == SCRIPTED, scripted, action)
        for number, racer in enumerate(self.frozen):
            action = jnp.where(driver == FROZEN + number, racer(named_obs(state)), action)
        present = race_of(state).present
        state = self.race.step(state, action)
        learns = present & (state.info["driver"] == LEARNER)
        info = {**state.info, "action": action, "learns": learns}
        return state.replace(info=info)  # pyright: ignore[reportAttributeAccessIssue]

    def membership(self, states: State) -> dict[str, Array]:
        """Replay tables by scenario, and `all` of them: states [N] to bool [R], where the learner
        drove a car that was in the race."""
        learns = states.info["learns"]
        of_each = {
            name: (learns & (states.info["scenario"] == number)[:, None]).reshape(-1)
            for number, name in enumerate(self.names)
        }
        return {**of_each, "all": learns.reshape(-1)}


def load_racer(name: str, env: RaceEnv) -> Callable[[Obs], Array]:
    """A frozen policy as a function of observations [M, ...].

    `name` is a bundle's directory, or DIR@SHARE for the same driver at a share of the speed that
    it asks for, or DIR@LEVEL (`DIFFICULTY`): slower, with what it has learnt about others.

    Raises UserError where it does not fit the race: other observations or actions.
    """
    path, share = directory_and_share(name)
    policy = load_policy(path)
    check_racer(policy, path, env)
    if share == 1.0:
        return lambda obs: policy.apply(policy.params, obs)
    return lambda obs: slowed(policy.apply(policy.params, obs), share, env.config.solo.line)


def directory_and_share(name: str) -> tuple[str, float]:
    """The parts of DIR@LEVEL or DIR@SHARE; a directory alone has the whole speed.

    Raises UserError for what is neither.
    """
    path, at, text = name.rpartition("@")
    if not at or Path(name).exists():
        return name, 1.0
    try:
        share = DIFFICULTY.get(text) or float(text)
    except ValueError:
        share = 0.0
    if not 0.5 <= share <= 1.0:
        raise UserError(
            f"policy {name}: {', '.join(DIFFICULTY)} or a share of the speed, 0.5 to 1, follows "
            f"@, got {text!r}"
        )
    return path, share


def check_racer(policy: Policy, name: str, env: RaceEnv) -> None:
    """Raises UserError with one line where a policy was trained for another kind of race."""
    offered = env.observation_size
    for entry, described in policy.manifest["observation"].items():
        wanted = described["shape"][-1]
        if entry not in offered:
            raise UserError(
                f"policy {name}: it needs the observation {entry!r}, this race offers "
                f"{', '.join(offered)}"
            )
        if offered[entry] != wanted:
            raise UserError(
                f"policy {name}: its observation {entry!r} has {wanted} entries, in this race it "
                f"has {offered[entry]}: it was trained with other features"
            )
    extra = policy.manifest["extra"]
    trained = extra["race"]["solo"] if "race" in extra else extra.get("env", {})
    if (steering := trained.get("steering")) != env.solo.config.steering:
        raise UserError(
            f"policy {name}: its actions are steering={steering}, the race's are "
            f"steering={env.solo.config.steering}"
        )
    known, here = (listed(spec, CAR_WORDS) for spec in (trained["car"], env.solo.config.car))
    if not set(here) <= set(known):
        raise UserError(
            f"policy {name}: it was trained in {trained['car']}, the race's cars are "
            f"{env.solo.config.car}"
        )
    ours = flags.to_dict(env.config)
    compared = [["solo", "line"], ["solo", "observation"]]
    if "race" in extra:
        compared.append(["opponents"])
    for path in compared:
        theirs, here = extra["race"] if "race" in extra else {"solo": trained}, ours
        for part in path:
            theirs, here = theirs.get(part, {}), here[part]
        for option, value in theirs.items():
            if here.get(option) != value:
                raise UserError(
                    f"policy {name}: it was trained with {'.'.join(path)}.{option}={value}, the "
                    f"race has {here.get(option)}"
                )
