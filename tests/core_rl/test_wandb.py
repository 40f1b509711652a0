"""The mirror to W&B read back with W&B's own tool: nothing lost, nothing counted twice."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core_rl.tracking import WandbConfig, WandbSink, group_of

WANDB = Path(sys.executable).with_name("wandb")


@dataclasses.dataclass(frozen=True)
class Agent:
    n_step: int = 5


@dataclasses.dataclass(frozen=True)
class Config:
    agent: Agent = Agent()
    seed: int = 0
    workdir: str = "runs/a"


@pytest.fixture(autouse=True)
def no_settings_of_ours(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def records(workdir, wanted):
    """All records of a work directory's fragments, in order of their starts, once the last row of
    each has come: W&B's process writes on for a moment after it was closed."""
    found = []
    for fragment, epoch in zip(
        sorted((workdir / "wandb").glob("offline-run-*")), wanted, strict=True
    ):
        deadline = time.monotonic() + 30.0
        while True:
            told = subprocess.run(
                [WANDB, "leet", "inspect", "--json", fragment], capture_output=True, text=True
            )
            part = [json.loads(line) for line in told.stdout.splitlines()]
            if any(row.get("epoch") == epoch for row in history(part)):
                break
            assert time.monotonic() < deadline, told.stderr
            time.sleep(0.2)
        found += part
    return found


def history(found):
    """The rows that were logged."""
    rows = []
    for record in found:
        if record["type"] == "history":
            items = record["history"]["item"]
            rows.append(
                {
                    item.get("key") or ".".join(item["nested_key"]): json.loads(item["value_json"])
                    for item in items
                }
                if isinstance(items, list)
                else items
            )
    return rows


def log(workdir, epochs, attempt, config=Config()):
    sink = WandbSink(WandbConfig(), workdir, "oval-s0", config, attempt=attempt)
    for epoch in epochs:
        sink.write({"epoch": epoch, "env_steps": 100 * epoch, "eval/score": epoch + 0.5 * attempt})
    return sink


def test_a_killed_and_resumed_run_is_read_back_whole(tmp_path):
    # The first process recorded six epochs and was killed with a checkpoint of the fourth.
    log(tmp_path, range(1, 7), attempt=0).close(exit_code=1)
    log(tmp_path, range(5, 9), attempt=1).close()
    rows = history(records(tmp_path, (6, 8)))
    latest = {}
    for row in rows:
        if row["attempt"] >= latest.get(row["epoch"], row)["attempt"]:
            latest[row["epoch"]] = row
    assert sorted(latest) == list(range(1, 9)) and len(rows) == 10
    scores = [latest[epoch]["eval/score"] for epoch in range(1, 9)]
    assert scores == [1.0, 2.0, 3.0, 4.0, 5.5, 6.5, 7.5, 8.5]
    ids = {path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert len(ids) == 1


def test_the_report_and_the_policy_are_shown_at_the_end(tmp_path):
    report, policy = tmp_path / "report.html", tmp_path / "policy"
    report.write_text("<p>done</p>")
    policy.mkdir()
    (policy / "policy.json").write_text("{}")
    sink = log(tmp_path, [1], attempt=0)
    sink.show(report, policy)
    sink.show(None, tmp_path / "missing")
    sink.close()
    text = json.dumps(records(tmp_path, (1,)))
    assert "html-file" in text and "oval-s0-policy" in text and "latest" in text
    (page,) = (tmp_path / "wandb").glob("offline-run-*/files/media/html/*.html")
    assert "done" in page.read_text()


def test_a_group_is_what_differs_in_seeds_alone():
    one = group_of("oval-s0", Config())
    assert one == group_of("oval-s7", Config(seed=7, workdir="runs/b"))
    assert one != group_of("oval-s0", Config(agent=Agent(n_step=3)))
    assert one.startswith("oval-")


def test_a_server_that_is_away_costs_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("core_rl.tracking.INIT_TIMEOUT", 3.0)
    sink = WandbSink(WandbConfig(mode="online"), tmp_path, "oval-s0", Config())
    sink.write({"epoch": 1})
    sink.close()
    warned = [line for line in capsys.readouterr().err.splitlines() if "mirror to W&B ends" in line]
    assert len(warned) == 1
