"""What the parts of the return task's recipe are worth: each is left out, over several seeds, in
short runs.

    ./run python -m experiments.ace_ablations                      # hours; may be stopped, resumes
    ./run python -m experiments.ace_ablations --only=full,scalar   # two of them, by name

Every run has its own directory under `--out`, so that commands with different `--only` may share
the work. When all runs that were asked for are complete it prints a table and draws
`ablations.png`. A run's result is the mean of its last evaluations, on balls that no training sees;
the interval is Student's over the seeds. `symmetric` critics are not told the afterstate either,
which knows the true ball: compare them with `no_afterstate`. `scalar` (scalar critics with the
reconstruction loss) is, but for the afterstate, the kind of agent that Sony published for Ace
(Durr et al. 2026, Nature 652:886-891).
"""

import dataclasses
from collections.abc import Callable

from core_rl import flags
from experiments import ace_return
from experiments.ablation import (
    Ablated,
    AblationConfig,
    Variant,
    ablate,
    agent,
    mean_of_last,
)
from experiments.ace_return import AceReturn


def _tables(*shares: tuple[str, float]) -> Callable[[AceReturn], AceReturn]:
    return lambda base: dataclasses.replace(
        base, train=dataclasses.replace(base.train, tables=shares)
    )


def _no_history(base: AceReturn) -> AceReturn:
    sensing = dataclasses.replace(base.env.sensing, history=1)
    env = dataclasses.replace(base.env, sensing=sensing)
    return dataclasses.replace(agent(actor_obs=("state", "readings"))(base), env=env)


VARIANTS = {
    "full": Variant("the full recipe", lambda base: base),
    "no_afterstate": Variant("no afterstate for the critics", agent(afterstate=False)),
    "symmetric": Variant(
        "symmetric critics: they see what the actor sees",
        agent(critic_obs=("state", "readings", "estimate"), afterstate=False),
    ),
    "no_filter": Variant(
        "no filter: the actor sees the last eight readings",
        agent(actor_obs=("state", "readings")),
    ),
    "no_history": Variant("no history: the actor sees the newest reading", _no_history),
    "no_reconstruction": Variant("no reconstruction loss", agent(reconstruct_obs=())),
    "scalar": Variant("scalar critics", agent(num_quantiles=1)),
    "tables": Variant(
        "event tables: a tenth of each batch",
        _tables(("miss", 0.025), ("net", 0.025), ("out", 0.025), ("legal", 0.025)),
    ),
}


@dataclasses.dataclass(frozen=True)
class AceAblations(AblationConfig):
    variants = VARIANTS
    out: str = "runs/ace_ablations"  # where the runs go


def run_config(config: AceAblations, variant: str, seed: int) -> AceReturn:
    """The configuration of one run."""
    return config.shortened(ace_return.CONFIG, variant, seed, evaluate_every=1, checkpoint_every=5)


def main(config: AceAblations) -> int:
    return ablate(
        config,
        Ablated(
            make_config=lambda variant, seed: run_config(config, variant, seed),
            make_experiment=ace_return.make_experiment,
            column="eval/legal",
            result=mean_of_last("eval/legal"),
            measure="returned",
            y_label="legal returns, share of unseen balls",
        ),
    )


if __name__ == "__main__":
    flags.main(main, AceAblations())
