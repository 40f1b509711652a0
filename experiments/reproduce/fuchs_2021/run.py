"""The time trial with SAC, as in Gran Turismo Sport before Sophy.

./run reproduce fuchs_2021 --scale=small --keep
"""

from experiments.reproduce.paper import Line, Paper, run_paper
from experiments.reproduce.time_trials import evaluation, training

# r = progress - 5e-4 |v|^2 per step of 0.1 s in contact with a wall, v in m/s: in our units, per
# second and (km/h)^2, 5e-4 / 0.1 / 3.6^2.
RECIPE = (
    "--agent.num_quantiles=1",
    "--agent.n_step=1",
    "--agent.num_critics=2",
    "--agent.layer_norm=false",
    "--agent.discount=0.98",
    "--agent.discount_final=0.0",
    "--agent.critic_obs=state",
    "--agent.actor_lr=3e-4",
    "--agent.critic_lr=3e-4",
    "--env.steering=target",
    "--env.reward.wall=3.858e-4",
    "--env.reward.off_course_squared=0.0",
    "--env.reward.tyre_slip=0.0",
)

PAPER = Paper(
    name="fuchs_2021",
    title="Super-human time trials with SAC",
    citation="Fuchs et al. 2021, Super-Human Performance in Gran Turismo Sport Using Deep "
    "Reinforcement Learning, IEEE RA-L 6(3), arXiv 2008.07971.",
    source="the paper's abstract; lap times of its three settings are in its Table I and are not "
    "repeated here.",
    steps={
        "smoke": (
            training("train/s0", 0, *RECIPE, smoke=True),
            evaluation("laps/s0", "train-s0", laps=1),
        ),
        "small": tuple(
            step
            for seed in (0, 1, 2)
            for step in (
                training(f"train/s{seed}", seed, *RECIPE),
                evaluation(f"laps/s{seed}", f"train-s{seed}", laps=10),
            )
        ),
        "full": (),
    },
    lines=(
        Line("faster than the best of 52,303 people", "in all three settings"),
        Line(
            "SAC: mean lap over the minimum lap time, 184,320 updates",
            "",
            "laps/*",
            "ratio_to_limit",
        ),
        Line("SAC: mean lap over the reference's", "", "laps/*", "ratio_to_reference"),
        Line("steps off course in ten laps", "", "laps/*", "off_course_steps"),
    ),
    deviations=(
        "Our own simulator, a GT3 car on larkspur.",
        "The driver sees our observation (course points) instead of 13 range finders and 10 "
        "curvatures, and decides at 10 Hz also where it is measured.",
        "As theirs, it is paid for progress and charged for walls alone: what lies beyond the "
        "white lines is slower, but not forbidden, so steps off course are no fault here.",
        "The target entropy and its annealing are our recipe's.",
    ),
    cost="35 minutes on two cores, an hour on one.",
    expected="laps that are clearly slower than QR-SAC's after the same time; nobody has measured "
    "how much before.",
    full="four consoles with 20 cars each for some days; here a GPU for some hours.",
)

if __name__ == "__main__":
    run_paper(PAPER)
