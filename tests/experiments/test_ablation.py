"""The ablations' machinery, and that the time trial's change what they say."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from core_rl import flags
from experiments import sophy_ablations, sophy_race_ablations
from experiments.ablation import Ablated, AblationConfig, Variant, ablate, interval, summarise
from experiments.sophy_ablations import SophyAblations
from experiments.sophy_race_ablations import SophyRaceAblations


def test_interval_of_a_few_seeds_is_students():
    # t(0.975, 2) = 4.3027; the deviation of (0.5, 0.6, 0.7) is 0.1.
    low, high = interval(np.array([0.5, 0.6, 0.7]))
    np.testing.assert_allclose(
        [low, high], 0.6 + np.array([-1, 1]) * 4.3027 * 0.1 / 3**0.5, rtol=1e-4
    )


def test_one_seed_says_nothing_of_the_mean():
    assert interval(np.array([0.5])) == (-np.inf, np.inf)


def test_a_run_without_a_number_leaves_its_variant_without_one():
    variants = {"a": Variant("this", lambda base: base), "b": Variant("that", lambda base: base)}
    table = summarise({"a": np.array([1.0, np.nan]), "b": np.array([1.0, 3.0])}, variants)
    assert np.isnan(table["a"]["mean"]) and np.isnan(table["a"]["low"])
    assert table["b"]["mean"] == 2.0 and table["b"]["seeds"] == [1.0, 3.0]


class Made(NamedTuple):
    workdir: str
    variant: str
    seed: int


@pytest.fixture
def runs(monkeypatch):
    """Replaces trainings by their outcome: 10 for the first variant, 20 for the second, and the
    seed; `runs.stop_at` names one that is interrupted."""

    class Outcome(NamedTuple):
        workdir: Path
        exit_code: int
        made: Made

    class Runs:
        done, stop_at = [], None

        @staticmethod
        def run(made: Made, workdir: str) -> Outcome:
            interrupted = (made.variant, made.seed) == Runs.stop_at
            if not interrupted:
                Runs.done.append((made.variant, made.seed))
                Path(workdir).mkdir(parents=True, exist_ok=True)
                rows = [{"updates": n, "eval/pace": n * made.seed} for n in (1.0, 2.0)]
                rows.insert(1, {"updates": 1.5})  # an epoch without an evaluation
                text = "".join(json.dumps(row) + "\n" for row in rows)
                (Path(workdir) / "metrics.jsonl").write_text(text)
            return Outcome(Path(workdir), 130 if interrupted else 0, made)

    monkeypatch.setattr("experiments.ablation.run", Runs.run)
    return Runs


def test_all_variants_run_with_the_same_seeds_and_the_table_holds_them(runs, tmp_path, capsys):
    variants = {
        "first": Variant("the one", lambda base: base),
        "second": Variant("the other", lambda base: base),
    }
    Toy = type("Toy", (AblationConfig,), {"variants": variants})
    config = Toy(num_seeds=2, first_seed=3, out=str(tmp_path), json=True)
    ablated = Ablated(
        make_config=lambda name, seed: Made(str(tmp_path / f"{name}{seed}"), name, seed),
        make_experiment=lambda made: (made, None),
        column="eval/pace",
        result=lambda outcome, _: (
            {"first": 10, "second": 20}[outcome.made.variant] + outcome.made.seed
        ),
        measure="number",
        y_label="pace",
    )
    assert ablate(config, ablated) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["first"]["seeds"] == [13, 14] and table["second"]["mean"] == 23.5
    assert runs.done == [("first", 3), ("second", 3), ("first", 4), ("second", 4)]
    assert (tmp_path / "ablations.png").read_bytes().startswith(b"\x89PNG")

    runs.stop_at = ("second", 3)
    assert ablate(config, ablated) == 130
    assert capsys.readouterr().out == ""  # no table of half of the runs


TIME_TRIAL = {
    "full": set(),
    "scalar": {"agent.num_quantiles"},
    "one_step": {"agent.n_step"},
    "no_points": {"env.observation.num_points"},
    "symmetric": {"agent.critic_obs"},
    "two_critics": {"agent.num_critics"},
    "no_layer_norm": {"agent.layer_norm"},
    "constant": {"agent.discount_final", "agent.target_entropy_final", "agent.anneal_updates"},
}
RACE = {
    "full": set(),
    "one_table": {"train.tables"},
    "scripted_only": {"league.self_play"},
    "self_only": {"league.self_play"},
}


@pytest.mark.parametrize(
    ("ablations", "config", "changes"),
    [
        (sophy_ablations, SophyAblations(), TIME_TRIAL),
        (sophy_race_ablations, SophyRaceAblations(), RACE),
    ],
)
def test_every_ablation_changes_what_it_says_and_nothing_else(ablations, config, changes):
    def changed(name: str) -> set[str]:
        flat, other = (
            flags.flatten(ablations.run_config(config, variant, 100)) for variant in ("full", name)
        )
        return {key for key in flat if flat[key] != other[key]} - {"workdir"}

    assert {name: changed(name) for name in config.variants} == changes


def test_an_ablation_that_does_not_exist_is_one_line():
    with pytest.raises(ValueError, match=r"^only must be among full, scalar.*, got 'half'$"):
        SophyAblations(only=("half",))
