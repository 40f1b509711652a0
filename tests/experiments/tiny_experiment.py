"""An experiment that learns nothing, fast: what sweeps, comparisons and lists of runs are tested
with. Its score is -(x - 0.3)^2 plus the epoch's share and a tenth of the discount, shifted by the
seed; it resumes exactly."""

import dataclasses
import signal
import sys
import time
from typing import Literal

from core_rl import flags
from core_rl.errors import UserError
from core_rl.tracking import JsonlSink, open_workdir, read_metrics, write_record


@dataclasses.dataclass(frozen=True)
class TinyTrain:
    num_epochs: int = 3
    sleep: float = 0.0  # per epoch [s]
    stop_at: int = 0  # epoch at which its time is up; 0: none


@dataclasses.dataclass(frozen=True)
class TinyAgent:
    x: float = 0.0
    discount: float = 0.0
    population: tuple[tuple[str, float], ...] = ()
    layers: tuple[int, ...] = (8, 8)
    kind: Literal["plain", "fails", "odd", "asked"] = "plain"


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    agent: TinyAgent = TinyAgent()
    train: TinyTrain = TinyTrain()
    seed: int = 0
    num_seeds: int = 1
    workdir: str = "runs/tiny"


CONFIG = TinyConfig()


def main(config: TinyConfig) -> int:
    if config.agent.kind == "fails":
        raise UserError("not finite in epoch 1: loss")
    if config.agent.kind == "asked":  # by somebody else to stop
        return 128 + signal.SIGTERM
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    with open_workdir(config.workdir) as workdir:
        seeds = list(range(config.seed, config.seed + config.num_seeds))
        write_record(workdir, config, seeds=seeds, may_differ=("workdir",))
        sink = JsonlSink(workdir / "metrics.jsonl")
        for epoch in range(len(read_metrics(workdir / "metrics.jsonl")) + 1, 1_000_000):
            time_is_up = 0 < config.train.stop_at < epoch
            if epoch > config.train.num_epochs or time_is_up or asked:
                break
            time.sleep(config.train.sleep)
            share = epoch / config.train.num_epochs
            scores = [
                share - (config.agent.x - 0.3) ** 2 + 0.1 * discount + 0.01 * seed
                for discount in [value for _, value in config.agent.population]
                or [config.agent.discount]
                for seed in seeds
            ]
            row = {"epoch": epoch, "env_steps": 100 * epoch, "time/train_seconds": 0.1 * epoch}
            sink.write({**row, "eval/score": scores if len(scores) > 1 else scores[0]})
        sink.close()
    return 128 + asked[0] if asked else 0


if __name__ == "__main__":
    flags.main(main, CONFIG, argv=sys.argv)
