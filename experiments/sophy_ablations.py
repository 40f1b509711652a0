"""What the parts of the time trial's recipe are worth: each is left out, over several seeds.

    ./run python -m experiments.sophy_ablations  # hours; may be stopped, resumes
    ./run python -m experiments.sophy_ablations --only=full,one_step

The first three after the full recipe are those that Wurman et al. 2022 report on Lago Maggiore (no
quantiles, one step, which is instead of five here and of seven there, no course points); then come
critics that see no more than the actor. The others are what this recipe has and theirs has not. A
run's number is the mean of ten laps of the policy that it kept over the minimum lap time; a policy
that leaves one of the ten undone has none (nan). The schedules are shortened with the run.
"""

import dataclasses
from typing import Any

import numpy as np

from core_rl import flags
from core_rl.launch import Outcome
from core_rl.policy import load_policy
from experiments import sophy_time_trial
from experiments.ablation import Ablated, AblationConfig, Variant, ablate, agent
from experiments.sophy_evaluate import evaluate, summary
from experiments.sophy_time_trial import SophyTimeTrial
from projects.sophy.time_trial import TimeTrial

NUM_LAPS = 10
START_SEED = 100  # of the laps


def _observation(**changes: object) -> Any:
    def change(base: SophyTimeTrial) -> SophyTimeTrial:
        observation = dataclasses.replace(base.env.observation, **changes)  # pyright: ignore
        return dataclasses.replace(base, env=dataclasses.replace(base.env, observation=observation))

    return change


VARIANTS = {
    "full": Variant("the full recipe", lambda base: base),
    "scalar": Variant("no quantiles: scalar critics", agent(num_quantiles=1)),
    "one_step": Variant("one step instead of five", agent(n_step=1)),
    "no_points": Variant("no course points", _observation(num_points=0)),
    "symmetric": Variant(
        "symmetric critics: they see what the actor sees", agent(critic_obs=("state",))
    ),
    "two_critics": Variant("two critics, of which the smaller counts", agent(num_critics=2)),
    "no_layer_norm": Variant("no layer norm", agent(layer_norm=False)),
    "constant": Variant(
        "constant discount and target entropy",
        agent(discount_final=0.0, target_entropy_final=None, anneal_updates=0),
    ),
}


@dataclasses.dataclass(frozen=True)
class SophyAblations(AblationConfig):
    variants = VARIANTS
    epochs: int = 80  # of 512 updates, per run: the recipe, cut short
    out: str = "runs/sophy_ablations"  # where the runs go


def run_config(config: SophyAblations, variant: str, seed: int) -> SophyTimeTrial:
    """The configuration of one run."""
    base = sophy_time_trial.CONFIG
    updates = config.epochs * base.train.updates_per_epoch
    base = agent(lr_decay_updates=updates, anneal_updates=updates)(base)
    return config.shortened(base, variant, seed, evaluate_every=5, checkpoint_every=50)


def over_limit(outcome: Outcome, env: TimeTrial) -> float:
    policy = load_policy(outcome.workdir / "policy")
    driven = summary(evaluate(policy, env, NUM_LAPS, START_SEED), NUM_LAPS)
    return driven["ratio_to_limit"] if driven["laps_completed"] == NUM_LAPS else np.nan


def main(config: SophyAblations) -> int:
    return ablate(
        config,
        Ablated(
            make_config=lambda variant, seed: run_config(config, variant, seed),
            make_experiment=sophy_time_trial.make_experiment,
            column="eval/pace",
            result=over_limit,
            measure="of limit",
            y_label="pace, share of the reference's",
        ),
    )


if __name__ == "__main__":
    flags.main(main, SophyAblations())
