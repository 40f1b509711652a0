"""The report of a return task: the best policy's exchanges, pictures, replay, curves, numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core_rl.launch import Outcome
from core_rl.policy import load_policy
from core_rl.report import CurveSpec, encode_png, write_report
from core_rl.tracking import read_record
from experiments.ace_evaluate import play_policy, summarise
from projects.ace.recording import Played, exchange_of
from projects.ace.render import exchange, landing_map, return_rates
from projects.ace.replay import replay_html
from projects.ace.return_env import LEGAL, ReturnTask

REPLAY_BALLS = 10

CURVES = [
    CurveSpec("Legal returns", ("eval/legal",), y_label="share of held-out balls"),
    CurveSpec("Touched balls", ("eval/hit",), y_label="share of held-out balls"),
    CurveSpec(
        "Faults",
        tuple(f"eval/ended/{name}" for name in ("miss", "net", "out", "touch")),
        y_label="share of held-out balls",
    ),
    CurveSpec("Landing error", ("eval/landing_error",), y_label="m, of legal returns"),
    CurveSpec("Return in training", ("rollout/episode_return",), y_label="per ball"),
    CurveSpec(
        "Terms",
        tuple(f"rollout/reward/{name}" for name in ("approach", "contact", "landing", "legal")),
        y_label="per step, unweighted",
        section="Reward",
    ),
    CurveSpec("Critic loss", ("train/critic_loss",), section="Losses", log=True),
    CurveSpec("Reconstruction", ("train/reconstruction_loss",), section="Losses", log=True),
    CurveSpec("Values", ("train/value", "train/target"), y_label="return", section="Losses"),
    CurveSpec("Entropy", ("train/entropy",), y_label="nats", section="Losses"),
    CurveSpec("Temperature", ("train/alpha",), section="Losses", log=True),
    CurveSpec("Speed", ("time/updates_per_second",), y_label="updates per second", section="Time"),
]


def spread_of_spin(played: Played, env: ReturnTask, count: int) -> list[int]:
    """Up to `count` legally returned balls, from the least to the most spin they came in with."""
    legal = np.flatnonzero(played.outcome == LEGAL)
    spin = np.linalg.norm(np.asarray(env.bank.incoming.start)[played.row[legal], 6:], axis=1)
    places = np.linspace(0, len(legal) - 1, min(count, len(legal))).round().astype(int)
    return [int(number) for number in legal[np.argsort(spin)][places]]


def return_pictures(played: Played, env: ReturnTask, result: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG pictures by name; `exchange`, of the legal return whose ball came in with the most spin,
    is left out where there is none."""
    legal = np.flatnonzero(played.outcome == LEGAL)
    speed = np.linalg.norm(played.returned[:, 3:6], axis=1)
    drawn = {
        "landing_map": landing_map(
            played.landing[legal], speed[legal], result["outcomes"], "Where the returns land"
        ),
        "return_rates": return_rates(result["by_spin"], result["by_speed"], "Returned balls"),
    }
    if len(legal):
        title = "The fastest-spinning ball that was returned"
        number = spread_of_spin(played, env, len(legal))[-1]
        drawn["exchange"] = exchange(exchange_of(played, env, number), title)
    return {name: encode_png(figure) for name, figure in drawn.items()}


def return_replay(played: Played, env: ReturnTask) -> str:
    """The replay's page of some legal returns, empty where there is none."""
    numbers = spread_of_spin(played, env, REPLAY_BALLS)
    exchanges = [exchange_of(played, env, number) for number in numbers]
    return replay_html(exchanges, f"{env.config.task}: returned balls") if exchanges else ""


def write_pictures(
    folder: Path, played: Played, env: ReturnTask, result: Mapping[str, Any]
) -> tuple[dict[str, bytes], str]:
    """Writes the pictures and the replay into `folder`; the replay is empty without a return.

    `result` is what `summarise` made of the played balls.
    """
    pictures, replay = return_pictures(played, env, result), return_replay(played, env)
    for name, content in pictures.items():
        (folder / f"{name}.png").write_bytes(content)
    if replay:
        (folder / "replay.html").write_text(replay, encoding="utf-8")
    return pictures, replay


CAPTIONS = {
    "exchange": ("An exchange", "The legal return whose ball came in with the most spin."),
    "return_rates": ("By spin and speed", "Of the balls that chose the policy."),
    "landing_map": ("Landings", "Legal returns on the far half, and how all balls ended."),
}


def write_return_report(outcome: Outcome, env: ReturnTask, seed: int) -> Path:
    """Plays `env`'s balls with the best policy and writes the report; returns its path."""
    workdir = outcome.workdir
    policy = load_policy(workdir / "policy")
    played = play_policy(policy, env, seed, env.num_balls, with_joints=True)
    result = summarise(played, env)
    pictures, replay = write_pictures(workdir, played, env, result)
    rates = {name: result[name] for name in ("returned", "hit")}
    error = result["landing_error"]
    numbers = [
        (
            label,
            f"{rates[name]['rate']:.1%}",
            f"95 %: {rates[name]['low']:.1%} to {rates[name]['high']:.1%}",
        )
        for label, name in (("Returned", "returned"), ("Touched", "hit"))
    ]
    if error["median"] is not None:
        near = f"{error['within_0.2']['rate']:.0%} of the legal returns within 0.2 m"
        numbers.append(("Landing error", f"{error['median']:.2f} m", f"median; {near}"))
    numbers += [
        (
            "Balls",
            str(result["balls"]),
            "of those that chose the policy; ace_evaluate plays fresh ones",
        ),
        *outcome.numbers(policy.manifest["record"]["epoch"], "of 32 ms, all robots"),
    ]
    path = workdir / "report.html"
    write_report(
        path,
        title=f"Table tennis: {env.config.task}",
        subtitle=f"QR-SAC, {outcome.epochs} epochs, {outcome.reason}",
        command=outcome.continue_command,
        record=read_record(workdir) or {},
        numbers=numbers,
        figures=[
            (CAPTIONS[name][0], pictures[name], CAPTIONS[name][1])
            for name in CAPTIONS
            if name in pictures
        ],
        embedded_pages=[("Replay", replay, 640)] if replay else [],
        metrics=outcome.rows,
        curves=CURVES,
    )
    return path
