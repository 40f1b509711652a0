"""Speed against fairness of teams that met the same opponents, in one picture.

    ./run python -m experiments.sophy_tradeoff runs/fair runs/ramming --names=fair,ramming

Reads the `summary.json` of championships (`experiments/sophy_championship.py`). Each first team is
a point: its pace in the races over its contacts of medium or heavy severity with blame, with 95 %
intervals over championships; opponents are drawn hollow. Wurman et al. 2022 found ramming on one
end, where contacts cost nothing, and timidity on the other, where all of them cost the same.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from core_rl import flags
from core_rl.errors import UsageError, UserError
from core_rl.report import encode_png
from experiments.sophy_championship import SUMMARY

PACE, FAULTS = "pace", "hard_faults_per_car_and_lap"
SAME = ("rules", "circuits", "championships")  # in what championships must agree


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    results: tuple[str, ...] = ()  # directories of championships' results
    names: tuple[str, ...] = ()  # of their first teams, in order; none: the directories' names
    aim: float = 0.1  # of hard faults per car and lap, drawn as a line; 0 draws none
    out: str = "runs/sophy_tradeoff.png"  # file of the picture
    json: bool = False  # print one JSON object

    def __post_init__(self):
        if self.names and len(self.names) != len(self.results):
            raise ValueError(
                f"names must be as many as results, {len(self.results)}, got {len(self.names)}"
            )


def read_summary(directory: str) -> dict[str, Any]:
    """Raises UserError where there is none, or where it is no championship's."""
    path = Path(directory) / SUMMARY
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        for team in ("team_a", "team_b"):
            for name in (PACE, FAULTS):
                float(told[team][name]["mean"])
        if missing := [name for name in SAME if name not in told]:
            raise KeyError(*missing)
        return told
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is none; python -m experiments.sophy_championship --out={directory} "
            "writes it"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the summary of championships ({error!r})") from None


def read_all(directories: tuple[str, ...]) -> list[dict[str, Any]]:
    """Raises UserError where they are not of the same rules, circuits and number of races."""
    summaries = [read_summary(directory) for directory in directories]
    first = summaries[0]
    for directory, told in zip(directories, summaries, strict=True):
        for name in SAME:
            if told[name] != first[name]:
                raise UserError(
                    f"{directory}: {name} are {told[name]}, those of {directories[0]} are "
                    f"{first[name]}; what is compared must agree"
                )
    return summaries


def picture(names: list[str], summaries: list[dict[str, Any]], aim: float) -> Figure:
    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.subplots()
    for number, (name, told) in enumerate(zip(names, summaries, strict=True)):
        for team, hollow in (("team_a", False), ("team_b", True)):
            faults, pace = told[team][FAULTS], told[team][PACE]
            axes.errorbar(
                faults["mean"],
                pace["mean"],
                xerr=_spread(faults),
                yerr=_spread(pace),
                fmt="o",
                color=f"C{number}",
                markerfacecolor="none" if hollow else None,
                alpha=0.5 if hollow else 1.0,
                capsize=2,
                label=None if hollow else name,
            )
    axes.plot([], [], "o", color="0.5", markerfacecolor="none", label="their opponents")
    if aim:
        axes.axvline(aim, color="0.6", linewidth=0.8, linestyle="--", label=f"aim, {aim:g}")
    axes.set_xlim(left=0.0)
    axes.set_xlabel("hard faults per car and lap (fewer is fairer)")
    axes.set_ylabel("pace in the race, share of the reference's")
    axes.set_title(f"{summaries[0]['championships']} championships each, {summaries[0]['rules']}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _spread(value: dict[str, Any]) -> list[list[float]] | None:
    if value["low"] is None:
        return None
    return [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]


def main(config: Tradeoff) -> int:
    if not config.results:
        raise UsageError("name results: python -m experiments.sophy_tradeoff DIR...")
    summaries = read_all(config.results)
    names = list(config.names) or [Path(directory).name for directory in config.results]
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(encode_png(picture(names, summaries, config.aim)))
    rows = {
        name: {
            team: {"who": told[team]["who"], PACE: told[team][PACE], FAULTS: told[team][FAULTS]}
            for team in ("team_a", "team_b")
        }
        for name, told in zip(names, summaries, strict=True)
    }
    if config.json:
        print(json.dumps(rows))
        return 0
    for name, row in rows.items():
        pace, faults = (
            f"{row['team_a'][key]['mean']:.3f} : {row['team_b'][key]['mean']:.3f}"
            for key in (PACE, FAULTS)
        )
        print(f"{name:24} pace {pace}   hard faults {faults}")
    print(out)
    return 0


if __name__ == "__main__":
    flags.main(main, Tradeoff(), positional="results")
