"""Returns unseen balls with the committed policy: no training, about a minute.

    ./run demo ace

Writes three pictures and a replay page; opens nothing. The balls are those that
`experiments.ace_evaluate` plays with the same `--num_balls`.
"""

import dataclasses
from pathlib import Path

from core_rl import flags
from core_rl.policy import load_policy
from core_rl.tracking import open_workdir
from experiments.ace_evaluate import TEST_SEED, env_config_of, play_policy, summarise
from experiments.ace_report import write_pictures
from projects.ace.bank import BankConfig
from projects.ace.return_env import ReturnTask

BUNDLE = Path(__file__).parents[1] / "projects/ace/policies/return"


@dataclasses.dataclass(frozen=True)
class AceDemo:
    policy: str = str(BUNDLE.relative_to(BUNDLE.parents[3]))  # bundle; relative: to the repository
    num_balls: int = 64  # balls that are drawn
    out: str = "runs/ace_demo"  # where the pictures go

    def __post_init__(self):
        if self.num_balls < 1:
            raise ValueError(f"num_balls must be at least 1, got {self.num_balls}")


def main(config: AceDemo) -> int:
    policy = load_policy(BUNDLE.parents[3] / config.policy)
    balls = BankConfig(num_balls=config.num_balls, seed=TEST_SEED)
    env = ReturnTask(dataclasses.replace(env_config_of(policy), balls=balls))
    played = play_policy(policy, env, TEST_SEED, env.num_balls, with_joints=True)
    result = summarise(played, env)
    for label, rate in (("hit", result["hit"]), ("returned", result["returned"])):
        print(f"{label}: {rate['rate']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]")
    print(f"balls: {result['balls']}, unseen in training")
    with open_workdir(config.out) as out:
        pictures, replay = write_pictures(Path(out), played, env, result)
        names = [*(f"{name}.png" for name in pictures), *(["replay.html"] if replay else [])]
        for name in names:
            print(out / name)
        if not replay:
            print("no legal return, so neither exchange.png nor replay.html")
    return 0


if __name__ == "__main__":
    flags.main(main, AceDemo())
