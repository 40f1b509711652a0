"""One car, many circuits, one driver: the time trial's recipe on a field of circuits.

    ./run train tour
    ./run train tour --env.circuit=path/to/Catalunya.csv,path/to/Monza.csv --workdir=runs/two

The garage's experiment with a single car: nothing tells the driver which circuit it is on but the
course ahead, so it also drives circuits that it has never seen. It trains for 55 minutes.
"""

import dataclasses

from core_rl import flags
from experiments import sophy_garage, sophy_time_trial
from experiments.sophy_garage import long_schedule, train

NUM_EPOCHS = 900

CONFIG = dataclasses.replace(
    sophy_garage.CONFIG,
    env=dataclasses.replace(
        sophy_garage.CONFIG.env,
        circuit="asphalt",
        car=sophy_time_trial.CONFIG.env.car,
        describe=False,
    ),
    agent=dataclasses.replace(
        sophy_garage.CONFIG.agent,
        static_obs=(),
        actor_obs=("state", "racing_line"),
        critic_obs=("state", "privileged_state", "racing_line"),
        hidden=sophy_time_trial.CONFIG.agent.hidden,
        **long_schedule(NUM_EPOCHS),
    ),
    train=dataclasses.replace(sophy_garage.CONFIG.train, num_epochs=NUM_EPOCHS, tables=()),
    workdir="runs/sophy_tour",
)


if __name__ == "__main__":
    flags.main(lambda config: train(config, "tour"), CONFIG)
