"""Checks every part of a search before a token is spent.

    ./run python -m projects.reward_llm.doctor --task=sophy:time_trial

The rewards of the task are judged by the validator, the drivers are driven and paid, the prompt is
written and measured, and the human reward is trained for a moment, alone and beside another. It
sends nothing anywhere. One line per check; the exit code says whether all are well.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from core_rl import flags
from core_rl.reward_task import RewardTask, load_task, task_names
from projects.reward_llm.compile import make_bank, padded
from projects.reward_llm.llm.tokens import estimate_tokens
from projects.reward_llm.population import make_population
from projects.reward_llm.search import drivers, prompting
from projects.reward_llm.validate import Job, Validator

NUM_STEPS = 300  # of the drives
HOSTILE = "```python\ndef reward(f):\n    return __import__('os').environ, {}\n```"


@dataclasses.dataclass(frozen=True)
class Doctor:
    task: str = "sophy:time_trial"  # project:task, or all
    epochs: int = 2  # of training, of two rewards side by side

    def __post_init__(self):
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")


Check = tuple[str, Callable[[], str]]  # what is checked; raises or says what was found


def checks(task: RewardTask, validator: Validator, epochs: int) -> Iterator[Check]:
    """The checks of a task, each on what those before it have found."""
    names = list(task.features)
    sources = {"human": task.human, "sparse": task.sparse, "terms": task.terms}
    drives = drivers.drive_all(task, min(task.test_length, NUM_STEPS))
    programs = {}

    def features() -> str:
        steps = drivers.steps_of(drives, list(drives.features), 2000)
        assert np.all(np.isfinite(steps)), "a feature is not finite"
        stuck = [name for i, name in enumerate(names) if np.ptp(steps[:, i]) == 0]
        said = f"{len(names)} features over {len(drives.features)} drivers"
        return said + (f"; constant in all of them: {', '.join(stuck)}" if stuck else "")

    def judged() -> str:
        rows = drivers.real_rows(task, drives)
        for name, source in sources.items():
            job = Job(f"```python\n{source}\n```", task.features, rows=rows)
            verdict = validator.judge([job])[0]
            assert verdict.accept, f"the reward {name!r} is refused: {verdict.hint}"
            programs[name] = verdict.program
        verdict = validator.judge([Job(HOSTILE, task.features)])[0]
        assert not verdict.accept, "a hostile reply was accepted"
        return f"{', '.join(sources)} are accepted, a hostile reply is refused ({verdict.reason})"

    def drivers_paid() -> str:
        paid = drivers.earnings(
            programs["human"], [1.0] * len(programs["human"].terms), drives, names
        )
        by = drivers.exploiters(paid)
        assert not by, f"the human reward pays trivial drivers more than the good one: {by}"
        return ", ".join(f"{name} {value:.1f}" for name, value in paid.items())

    def prompted() -> str:
        messages = prompting.design_messages(task, task.goal, drives, prompting.STYLES[0])
        return f"about {estimate_tokens(messages):,} tokens"

    def trained() -> str:
        chosen = [programs["human"], programs["sparse"]]
        population = make_population(task, epochs)
        bank = make_bank(chosen, names)
        weights = padded([[1.0] * len(one.terms) for one in chosen], bank.num_terms)
        state = population.init([jax.random.key(0)] * 2)
        state = population.relabel(state, bank, weights)
        metrics = {}
        for _ in range(epochs):
            state, metrics = population.epoch(state, bank, weights)
        losses = np.asarray(metrics["train/critic_loss"])
        assert np.all(np.isfinite(losses)), f"critic losses are not finite: {losses}"
        tested = population.test(state, jax.random.key(1))
        scores = tested.metrics[task.score]
        return f"critic losses {losses.round(3).tolist()}, {task.score} {scores.round(3).tolist()}"

    yield "features", features
    yield "rewards", judged
    yield "drivers", drivers_paid
    yield "prompt", prompted
    yield "training", trained


def run(config: Doctor) -> int:
    names = task_names() if config.task == "all" else [config.task]
    failed = False
    with Validator() as validator:
        for name in names:
            task = load_task(name)
            print(name, flush=True)
            for title, check in checks(task, validator, config.epochs):
                began = time.monotonic()
                try:
                    said, well = check(), True
                except (AssertionError, ValueError) as error:
                    said, well = str(error), False
                seconds = time.monotonic() - began
                print(f"  {'ok    ' if well else 'FAILED'} {title:9} {said} ({seconds:.0f} s)")
                failed |= not well
                if not well:  # the checks after it stand on it
                    break
    return 1 if failed else 0


if __name__ == "__main__":
    flags.main(run, Doctor())
