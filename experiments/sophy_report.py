"""The report of a time trial: the best policy's flying laps, pictures, replay, curves, numbers."""

from pathlib import Path

import numpy as np

from core_rl.launch import Outcome
from core_rl.policy import load_policy
from core_rl.report import CurveSpec, encode_png, write_report
from core_rl.tracking import read_record
from experiments.sophy_evaluate import Evaluation, evaluate
from projects.sophy.drive import show_time
from projects.sophy.laps import outline_of, profile_of, shorten
from projects.sophy.limits import cheats
from projects.sophy.render import lap_animation, telemetry, track_map
from projects.sophy.replay import replay_html
from projects.sophy.time_trial import TimeTrial

REPORT_LAPS = 10
REPLAY_LAPS = 2

TRAINING_CURVES = [  # what every task with these rewards shows of its training
    CurveSpec("Reward in training", ("rollout/reward",), y_label="per step"),
    CurveSpec(
        "Progress", ("rollout/reward/progress",), y_label="metres per step", section="Reward"
    ),
    CurveSpec(
        "Penalties",
        tuple(f"rollout/reward/{name}" for name in ("off_course_squared", "wall", "tyre_slip")),
        y_label="per step, unweighted",
        section="Reward",
    ),
    CurveSpec("Critic loss", ("train/critic_loss",), section="Losses", log=True),
    CurveSpec("Values", ("train/value", "train/target"), y_label="return", section="Losses"),
    CurveSpec("Entropy", ("train/entropy",), y_label="nats", section="Losses"),
    CurveSpec("Temperature", ("train/alpha",), section="Losses", log=True),
    CurveSpec("Speed", ("time/updates_per_second",), y_label="updates per second", section="Time"),
]

CURVES = [
    CurveSpec("Lap time over the reference's", ("eval/ratio",), y_label="ratio"),
    CurveSpec("Pace of all cars", ("eval/pace",), y_label="share of the reference's distance"),
    CurveSpec("Off course", ("eval/off_course_steps",), y_label="steps per evaluated car"),
    *TRAINING_CURVES,
]


def title_of(env: TimeTrial) -> str:
    """Car and circuit; a circuit from a file goes by the file's name."""
    circuit = env.config.circuit
    return f"{env.config.car} on {Path(circuit).stem if circuit.endswith('.csv') else circuit}"


def drive_pictures(evaluation: Evaluation) -> dict[str, bytes]:
    """PNG pictures by name: `map` and `telemetry`, of the best of the flying laps."""
    env, laps = evaluation.env, evaluation.laps
    outline, profile = outline_of(env.track), profile_of(env.reference)
    return {
        "map": encode_png(track_map(outline, laps.drive, profile, title_of(env))),
        "telemetry": encode_png(telemetry(laps.drive, outline, profile)),
    }


def drive_replay(evaluation: Evaluation) -> str:
    """The replay's page: the first flying laps."""
    env, laps = evaluation.env, evaluation.laps
    return replay_html(
        outline_of(env.track),
        {env.config.car: shorten(laps.drive, REPLAY_LAPS)},
        profile_of(env.reference),
        title_of(env),
    )


def _over_limit(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    laps, limit = evaluation.laps, evaluation.limit
    if limit is None or not laps.lap_times:
        return []
    ratio = float(np.mean(laps.lap_times)) / limit.lap_time
    note = f"the minimum lap time by optimal control: {show_time(limit.lap_time)}"
    alarm = cheats(laps.lap_times, limit)
    return [("Mean over the limit", f"{ratio:.4f}", alarm or note)]


def numbers_of(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Label, value and note of what the flying laps amount to."""
    laps = evaluation.laps
    done = laps.lap_times
    return [
        ("Best lap", show_time(min(done) if done else None), f"of {len(done)} flying laps"),
        (
            "Mean over the reference",
            f"{laps.ratio:.4f}" if done else "–",
            "the reference is an ideal quasi-steady-state driver of the centre line: "
            + show_time(laps.reference_time),
        ),
        *_over_limit(evaluation),
        ("Steps off course", str(laps.off_course_steps), "of 0.1 s, three wheels or more outside"),
        ("Steps in a wall", str(laps.wall_contact_steps), "of 0.1 s"),
        ("Mean lap", show_time(float(np.mean(done)) if done else None), ""),
        ("Spread of laps", f"{np.std(done) * 1000:.0f} ms" if done else "–", "standard deviation"),
    ]


def write_time_trial_report(outcome: Outcome, env: TimeTrial) -> Path:
    """Drives ten flying laps with the best policy and writes the report; returns its path."""
    workdir = outcome.workdir
    policy = load_policy(workdir / "policy")
    evaluation = evaluate(policy, env, REPORT_LAPS, seed=0)
    pictures = drive_pictures(evaluation)
    for name, content in pictures.items():
        (workdir / f"{name}.png").write_bytes(content)
    laps = evaluation.laps
    (workdir / "lap.gif").write_bytes(
        lap_animation(outline_of(env.track), laps.drive, title_of(env))
    )
    replay = drive_replay(evaluation)
    (workdir / "replay.html").write_text(replay, encoding="utf-8")
    record = read_record(workdir) or {}
    numbers = numbers_of(evaluation)
    numbers += outcome.numbers(policy.manifest["record"]["epoch"], "of 0.1 s, all cars")
    path = workdir / "report.html"
    write_report(
        path,
        title=f"Time trial: {title_of(env)}",
        subtitle=f"QR-SAC, {outcome.epochs} epochs, {outcome.reason}",
        command=outcome.continue_command,
        record=record,
        numbers=numbers,
        figures=[
            ("The driven line", pictures["map"], "The best flying lap, coloured by speed."),
            ("Telemetry", pictures["telemetry"], "The same lap over the distance."),
        ],
        embedded_pages=[("Replay", replay, 640)],
        metrics=outcome.rows,
        curves=CURVES,
    )
    return path
