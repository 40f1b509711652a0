"""The garage as a user starts it, on a field small enough for a test."""

import numpy as np
import pytest

from core_rl import flags
from core_rl.errors import UserError
from core_rl.policy import load_policy
from core_rl.tracking import read_metrics
from experiments import sophy_garage, sophy_tour
from experiments.sophy_evaluate import env_config_of
from projects.sophy.field import COMPOUND_WORDS
from projects.sophy.time_trial import TimeTrial

TINY = [
    "--env.circuit=larkspur,redgully",
    "--env.car=kart,hatch_ff:2",
    "--env.substeps=2",
    "--agent.hidden=8,8",
    "--agent.static_hidden=8",
    "--agent.batch_size=16",
    "--agent.num_quantiles=4",
    "--train.num_envs=8",
    "--train.steps_per_epoch=8",
    "--train.updates_per_step=2",
    "--train.num_epochs=2",
    "--train.warmup_steps=8",
    "--train.replay_capacity=512",
    "--run.wandb.mode=disabled",
]
CONCATENATED = [
    "--agent.static_obs=",
    "--agent.actor_obs=state,surface,racing_line,car",
    "--agent.critic_obs=state,surface,privileged_state,racing_line,car",
]


def config_of(*arguments):
    return flags.parse(sophy_garage.CONFIG, [*TINY, *arguments])


def test_two_epochs_leave_a_policy_that_tells_what_it_drives(tmp_path, monkeypatch):
    monkeypatch.setattr(sophy_garage, "EVALUATION_CARS", 16)
    monkeypatch.setattr(sophy_garage, "EVALUATION_STEPS", 4)
    config = config_of(f"--workdir={tmp_path}")
    assert sophy_garage.train(config) == 0
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert len(rows) == 2
    last = rows[-1]
    assert np.isfinite(last["eval/score"])
    assert all(np.isfinite(last[f"eval/pace/{name}"]) for name in ("all", "asphalt", "dirt"))
    policy = load_policy(tmp_path / "policy")
    assert set(policy.manifest["observation"]) == {"state", "surface", "racing_line", "car"}
    assert env_config_of(policy) == config.env
    own = env_config_of(policy, "redgully", "kart")
    assert (own.circuit, own.car, own.describe) == ("redgully", "kart", True)
    obs = {name: np.zeros(size) for name, size in TimeTrial(own).observation_size.items()}
    assert policy.act(obs).shape == (2,)
    page = (tmp_path / "report.html").read_text()
    assert "Pace, dirt" in page
    assert "Pace, snow" not in page


def test_the_car_may_enter_with_the_state_instead():
    experiment, _ = sophy_garage.make_experiment(config_of(*CONCATENATED))
    assert experiment.config.agent.static_obs == ()
    described = "".join((sophy_garage.__doc__ or "").split())
    assert all(flag in described for flag in CONCATENATED)


def test_a_table_that_is_not_offered_is_refused_in_one_line():
    with pytest.raises(
        UserError, match=r"no table 'gravel'; this task offers AWD, FF, FR, MR, RR, asp"
    ):
        sophy_garage.make_experiment(config_of("--train.tables=gravel:0.5"))


def test_the_preset_drives_everything_and_fits_a_batch():
    config = sophy_garage.CONFIG
    assert sum(share for _, share in config.train.tables) == pytest.approx(0.9)
    assert not set(config.agent.static_obs) & set(config.agent.critic_obs)
    assert len(config.agent.hidden) >= 3  # the trunk has two layers, the car joins the third
    assert len(COMPOUND_WORDS["dry"]) == 9


def test_a_tour_has_one_car_and_continues_under_its_own_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sophy_garage, "EVALUATION_CARS", 4)
    monkeypatch.setattr(sophy_garage, "EVALUATION_STEPS", 4)
    tiny = [one for one in TINY if "car=" not in one and "static" not in one]
    config = flags.parse(sophy_tour.CONFIG, [*tiny, f"--workdir={tmp_path}"])
    assert (config.env.car, config.env.describe) == ("gt3_fr", False)
    assert sophy_tour.train(config, "tour") == 0
    policy = load_policy(tmp_path / "policy")
    assert set(policy.manifest["observation"]) == {"state", "racing_line"}
    assert "./run train tour" in capsys.readouterr().out
