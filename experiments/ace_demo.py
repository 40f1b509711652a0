"""Returns unseen balls with the committed policy: no training, about a minute.

    ./run demo ace

Writes three pictures; opens nothing. The balls are those of `experiments.ace_evaluate` with the
same `--num_balls`.
"""

import dataclasses
from pathlib import Path

import numpy as np

from core_rl import flags
from core_rl.policy import Policy, load_policy
from core_rl.report import encode_png
from core_rl.tracking import open_workdir
from experiments.ace_evaluate import TEST_SEED, env_config_of, episode_keys, summarise
from projects.ace.bank import BankConfig
from projects.ace.recording import Played, exchange_of, play
from projects.ace.render import exchange, landing_map, return_rates
from projects.ace.return_env import LEGAL, ReturnTask

BUNDLE = Path(__file__).parents[1] / "projects/ace/policies/return"


@dataclasses.dataclass(frozen=True)
class AceDemo:
    policy: str = str(BUNDLE.relative_to(BUNDLE.parents[3]))  # bundle; relative: to the repository
    num_balls: int = 64  # balls that are drawn
    out: str = "runs/ace_demo"  # where the pictures go

    def __post_init__(self):
        if self.num_balls < 1:
            raise ValueError(f"num_balls must be at least 1, got {self.num_balls}")


def play_all(policy: Policy, env: ReturnTask) -> Played:
    """Every ball of the environment's bank once, begun as the evaluation begins it."""
    act = lambda obs: policy.apply(policy.params, obs)  # noqa: E731
    return play(act, env, np.arange(env.num_balls), episode_keys(env, TEST_SEED))


def pictures(played: Played, env: ReturnTask) -> tuple[dict, dict[str, bytes]]:
    """The evaluation's numbers, and PNG pictures by name; `exchange` is of the legal return whose
    ball came in with the most spin, and is left out where there is none."""
    incoming = env.bank.incoming
    start = np.asarray(incoming.start)
    speed = np.linalg.norm(played.returned[:, 3:6], axis=1)
    spin = np.linalg.norm(played.returned[:, 6:], axis=1)
    ends = {"outcome": played.outcome, "landing": played.landing, "target": played.target}
    result = summarise({**ends, "speed": speed, "spin": spin}, start, np.asarray(incoming.serve))
    legal = np.flatnonzero(played.outcome == LEGAL)
    drawn = {
        "landing_map": landing_map(
            played.landing[legal], speed[legal], result["outcomes"], "Where the returns land"
        ),
        "return_rates": return_rates(result["by_spin"], result["by_speed"], "Returned balls"),
    }
    if len(legal):
        number = int(legal[np.argmax(np.linalg.norm(start[legal, 6:], axis=1))])
        title = "The fastest-spinning ball that was returned"
        drawn["exchange"] = exchange(exchange_of(played, env, number), title)
    return result, {name: encode_png(figure) for name, figure in drawn.items()}


def main(config: AceDemo) -> int:
    policy = load_policy(BUNDLE.parents[3] / config.policy)
    balls = BankConfig(num_balls=config.num_balls, seed=TEST_SEED)
    env = ReturnTask(dataclasses.replace(env_config_of(policy), balls=balls))
    with open_workdir(config.out) as out:
        result, drawn = pictures(play_all(policy, env), env)
        for label, rate in (("hit", result["hit"]), ("returned", result["returned"])):
            print(f"{label}: {rate['rate']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]")
        print(f"balls: {result['balls']}, unseen in training")
        for name, content in drawn.items():
            (out / f"{name}.png").write_bytes(content)
            print(out / f"{name}.png")
        if "exchange" not in drawn:
            print("no legal return, so no exchange.png")
    return 0


if __name__ == "__main__":
    flags.main(main, AceDemo())
