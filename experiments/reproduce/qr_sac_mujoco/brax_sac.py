"""brax's own SAC, unmodified, on a brax environment, with our recipe's numbers.

./run python -m experiments.reproduce.qr_sac_mujoco.brax_sac --env=halfcheetah --json
"""

import dataclasses
import functools
import json
import time
from collections.abc import Mapping
from typing import Any

from brax import envs
from brax.training.agents.sac import networks as brax_networks
from brax.training.agents.sac import train as brax_sac

from core_rl import flags


@dataclasses.dataclass(frozen=True)
class BraxSacConfig:
    env: str = "halfcheetah"
    backend: str = "spring"
    steps: int = 65_536  # of the environment, after those that fill the replay first
    prefill: int = 4096  # steps of the environment with random actions, at first
    num_envs: int = 64
    updates_per_step: int = 16  # gradient steps per step of all environments
    num_evals: int = 9  # the first before training
    hidden: tuple[int, ...] = (256, 256)  # widths of all networks
    batch_size: int = 256
    episode_length: int = 1000
    seed: int = 0
    json: bool = False  # print one JSON object


CONFIG = BraxSacConfig()


def main(config: BraxSacConfig) -> int:
    rows, began = [], time.monotonic()

    def progress(steps: int, metrics: Mapping[str, Any]) -> None:
        rows.append(
            {
                # brax counts those that fill the replay.
                "env_steps": max(int(steps) - config.prefill, 0),
                "return": float(metrics["eval/episode_reward"]),
                "train_seconds": float(metrics.get("training/walltime", 0.0)),
                "updates_per_second": float(metrics.get("training/sps", 0.0))
                / config.num_envs
                * config.updates_per_step,
            }
        )

    brax_sac.train(
        environment=envs.get_environment(config.env, backend=config.backend),
        num_timesteps=config.steps + config.prefill,
        episode_length=config.episode_length,
        num_envs=config.num_envs,
        num_eval_envs=16,
        num_evals=config.num_evals,
        learning_rate=3e-4,
        discounting=0.99,
        batch_size=config.batch_size,
        normalize_observations=True,
        min_replay_size=config.prefill,
        max_replay_size=131_072,
        grad_updates_per_step=config.updates_per_step,
        deterministic_eval=True,
        network_factory=functools.partial(  # pyright: ignore[reportArgumentType]
            brax_networks.make_sac_networks, hidden_layer_sizes=config.hidden
        ),
        seed=config.seed,
        max_devices_per_host=1,
        progress_fn=progress,
    )
    last = rows[-1]
    told = {
        "return": last["return"],
        "env_steps": last["env_steps"],
        "updates_per_second": last["updates_per_second"],
        "seconds": time.monotonic() - began,
        "curve": rows,
    }
    if config.json:
        print(json.dumps(told))
    else:
        for row in rows:
            print(f"{row['env_steps']:9,} steps  return {row['return']:9.1f}")
    return 0


if __name__ == "__main__":
    flags.main(main, CONFIG)
