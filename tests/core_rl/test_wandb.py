"""The mirror to W&B: its files read back with W&B's own tool and uploaded to a stand-in for its
server. Nothing is lost, nothing counts twice, and nothing that fails there stops a run."""

import dataclasses
import gzip
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import wandb
from PIL import Image

from core_rl import flags, launch
from core_rl.launch import Experiment, RunConfig, report_end, run
from core_rl.qr_sac import QRSACConfig
from core_rl.tracking import (
    JsonlSink,
    WandbConfig,
    WandbSink,
    check_same_config,
    group_of,
    read_metrics,
)
from core_rl.train import TrainConfig
from core_rl.types import Trainer

WANDB = Path(sys.executable).with_name("wandb")
ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # nothing listens there


@dataclasses.dataclass(frozen=True)
class Config:
    agent: QRSACConfig = QRSACConfig()
    train: TrainConfig = TrainConfig()
    run: RunConfig = RunConfig()
    seed: int = 0
    num_seeds: int = 1
    workdir: str = "runs/a"


OFFLINE, ONLINE, OFF = (WandbConfig(mode=mode) for mode in ("offline", "online", "disabled"))


@pytest.fixture(autouse=True)
def wandb_environment(monkeypatch):
    """W&B's variables are set by the mirror and by W&B itself; here none comes in or stays."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    yield
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]


def row_of(epoch, attempt=0):
    """What is recorded of an epoch; the values tell which attempt it was."""
    return {
        "epoch": epoch,
        "env_steps": 100 * epoch,
        "eval/score": epoch / 3 + attempt,
        "eval/lap_time": math.nan if epoch == 1 else 12.625,
    }


def begin(workdir, attempt, resumed=0, config=OFFLINE):
    """The two sinks as a run that begins, or resumes after an epoch, opens them."""
    sink = JsonlSink(workdir / "metrics.jsonl")
    sink.supersede_after(resumed)
    rows = read_metrics(workdir / "metrics.jsonl")
    return sink, WandbSink(config, workdir, "oval-s0", Config(), attempt=attempt, rows=rows)


def record(sinks, epochs, attempt):
    for epoch in epochs:
        for sink in sinks:
            sink.write(row_of(epoch, attempt))


def start(workdir, epochs, attempt, resumed=0, config=OFFLINE):
    """A process of a run from its start to its end in order."""
    sinks = begin(workdir, attempt, resumed, config)
    record(sinks, epochs, attempt)
    for sink in sinks:
        sink.close()


def kill_a_process_that_recorded(workdir, epochs):
    code = """if True:
        import json, os, signal, sys
        from pathlib import Path
        from core_rl.tracking import JsonlSink, WandbConfig, WandbSink

        workdir, config = Path(sys.argv[1]), WandbConfig()
        sink = JsonlSink(workdir / "metrics.jsonl")
        mirror = WandbSink(config, workdir, "oval-s0", config, rows=[])
        for row in json.loads(sys.argv[2]):
            sink.write(row)
            mirror.write(row)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    rows = json.dumps([row_of(epoch) for epoch in epochs])
    assert subprocess.run([sys.executable, "-c", code, workdir, rows], cwd=ROOT).returncode == -9


def fragments(workdir):
    return sorted(path.parent for path in (workdir / "wandb").glob("offline-run-*/*.wandb"))


def inspect(workdir):
    """The records of all fragments, in order of their starts, once they are complete: W&B's process
    writes on for a moment after a run was closed."""
    found: list[dict[str, Any]] = []
    for fragment in fragments(workdir):
        part: list[dict[str, Any]] = []
        deadline = time.monotonic() + 30.0
        while not any(entry["type"] == "exit" for entry in part):
            assert time.monotonic() < deadline, part
            told = subprocess.run(
                [WANDB, "leet", "inspect", "--json", fragment], capture_output=True, text=True
            )
            part = [json.loads(line) for line in told.stdout.splitlines()]
        found += part
    return found


def history(found):
    """The rows that were logged, without W&B's own columns."""
    rows = []
    for entry in found:
        if entry["type"] == "history":
            items = entry["history"]["item"]
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


def assert_mirrors(rows, workdir, times=1):
    """The latest attempt of every epoch is what `metrics.jsonl` holds, and none is there but it.

    `times`: how often an epoch may be there.
    """
    latest: dict[int, dict[str, Any]] = {}
    for row in rows:
        epoch = row["epoch"]
        assert sum(other["epoch"] == epoch for other in rows) <= times
        if row["attempt"] >= latest.get(epoch, row)["attempt"]:
            latest[epoch] = row
    truth = read_metrics(workdir / "metrics.jsonl")
    assert sorted(latest) == [row["epoch"] for row in truth]
    for row in truth:
        found = {key: float(value) for key, value in latest[row["epoch"]].items()}  # nan is text
        assert found.pop("attempt") >= 0
        assert found == pytest.approx(row, rel=0, abs=0, nan_ok=True)


class StandIn:
    """As much of W&B's server as `wandb sync` and a resume ask for; it keeps the rows of one run.

    Its answers are modelled on what W&B's client reads; no real server was asked.
    """

    def __init__(self):
        self.rows: list[dict[str, Any]] = []
        self.summary, self.known, self.artifacts = "{}", False, []
        self.sweep, self.proposals, self.streams = "", [], set()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def body(self):
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                zipped = self.headers.get("Content-Encoding") == "gzip"
                return gzip.decompress(content) if zipped else content

            def reply(self, value):
                content = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self):
                self.reply({})

            def do_PUT(self):
                self.body()
                self.reply({})

            def do_POST(self):
                content = self.body()
                if self.path.endswith("/file_stream"):
                    stand_in.streams.add(self.path.split("/")[-2])  # the run's id
                    self.reply(stand_in.take(json.loads(content).get("files") or {}))
                elif self.path.endswith("/graphql"):
                    asked = json.loads(content)
                    address = f"http://{self.headers['Host']}"
                    query, variables = asked["query"], asked.get("variables") or {}
                    self.reply({"data": stand_in.answer(query, variables, address)})
                else:
                    self.reply({})

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_):
                pass  # a client that is gone

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def environment(self, directory):
        values = {"WANDB_BASE_URL": f"http://127.0.0.1:{self._server.server_port}"}
        values["WANDB_API_KEY"] = "0" * 40
        for name in ("CACHE", "CONFIG", "DATA"):
            values[f"WANDB_{name}_DIR"] = str(directory)
        return values

    def take(self, files):
        if "wandb-history.jsonl" in files:
            part = files["wandb-history.jsonl"]
            rows = [json.loads(line) for line in part["content"]]
            self.rows[part["offset"] : part["offset"] + len(rows)] = rows
        if "wandb-summary.json" in files:
            self.summary = files["wandb-summary.json"]["content"][-1]
        return {"exitcode": None, "limits": {}}

    def answer(self, query, variables, address):
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = match.group(1) if match else ""
        run = {"id": "UnVuOjE=", "name": variables.get("name"), "displayName": "oval-s0"}
        project = {"id": "p", "name": "champion-control", "entity": {"id": "e", "name": "me"}}
        if name == "UpsertBucket":
            inserted, self.known = not self.known, True
            run |= {"project": project, "historyLineCount": len(self.rows)}
            return {"upsertBucket": {"bucket": run, "inserted": inserted}}
        if name == "RunResumeStatus":
            tail = json.dumps([json.dumps(row) for row in self.rows[-1:]])
            run |= {"historyLineCount": len(self.rows), "historyTail": tail, "eventsTail": "[]"}
            run |= {"summaryMetrics": self.summary, "config": "{}", "tags": []}
            run |= {"logLineCount": 0, "eventsLineCount": 0, "wandbConfig": '{"t": 1}'}
            return {"model": {**project, "bucket": run if self.known else None}}
        if name == "CreateArtifact":  # as if it had the files already
            self.artifacts.append(variables["input"])
            artifact = {"id": "a", "state": "COMMITTED"}
            artifact["artifactSequence"] = {"id": "s", "latestArtifact": None}
            return {"createArtifact": {"artifact": artifact}}
        if name == "ArtifactType":
            return {"project": None}
        if "viewer" in query and name != "UpsertBucket":
            return {"viewer": {"id": "e", "username": "me", "entity": "me", "flags": "{}"}}
        if name == "SweepWithRuns":
            return {"project": {"sweep": {"config": self.sweep, "runs": {"edges": []}}}}
        if name == "CreateAgent":
            return {"createAgent": {"agent": {"id": "agent"}}}
        if name == "Heartbeat":  # a run at a time, then the end
            busy = json.loads(variables["runState"])
            end = [{"type": "exit"}]
            commands = [] if busy else [self.proposals.pop(0)] if self.proposals else end
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        if name == "CreateRunFiles":
            files = [
                {"name": file, "uploadUrl": f"{address}/up/{file}"} for file in variables["files"]
            ]
            return {"createRunFiles": {"runID": run["id"], "uploadHeaders": [], "files": files}}
        return {}

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def fresh_wandb():
    """W&B reads its environment, and so the server's address, when a process first uses it."""
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def server():
    stand_in = StandIn()
    yield stand_in
    stand_in.close()


def sync(workdir, server):
    done = subprocess.run(
        [WANDB, "sync", "--yes", workdir / "wandb"],
        env={**os.environ, **server.environment(workdir / "wandb" / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "ERROR" not in done.stdout + done.stderr, done


def test_a_killed_and_resumed_run_is_mirrored_whole_and_synced_once(tmp_path, server):
    # Killed after six epochs with a checkpoint of the fourth.
    kill_a_process_that_recorded(tmp_path, range(1, 7))
    start(tmp_path, [5, 6, 7], attempt=1, resumed=4)
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb.killed"))) == 1
    assert_mirrors(history(inspect(tmp_path)), tmp_path)
    sync(tmp_path, server)
    start(tmp_path, [8], attempt=2, resumed=7)
    rows = history(inspect(tmp_path))
    assert_mirrors(rows, tmp_path)
    assert [row["attempt"] for row in rows] == [1] * 7 + [2]
    run_id = (tmp_path / "wandb" / "run_id").read_text()
    assert all(f"-{run_id}" in path.name for path in fragments(tmp_path))
    for _ in range(2):  # what was sent is not sent again
        sync(tmp_path, server)
        assert [row["epoch"] for row in server.rows] == list(range(1, 9))
        assert [row["_step"] for row in server.rows] == list(range(8))


def test_epochs_recorded_twice_are_told_apart_by_their_attempt(tmp_path, server):
    # It ended in an error, in order, after six epochs with a checkpoint of the fourth.
    start(tmp_path, range(1, 7), attempt=0)
    start(tmp_path, range(5, 9), attempt=1, resumed=4)
    inspected = history(inspect(tmp_path))
    sync(tmp_path, server)
    for rows in (inspected, server.rows):
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]
        assert [row["attempt"] for row in rows] == [0] * 6 + [1] * 4
    assert_mirrors(inspected, tmp_path, times=2)


def test_rows_of_a_time_without_the_mirror_are_sent_at_the_next_resume(tmp_path):
    start(tmp_path, [1, 2], attempt=0, config=OFF)
    assert not (tmp_path / "wandb").exists()
    start(tmp_path, [3], attempt=1, resumed=2)
    start(tmp_path, [4, 5], attempt=2, resumed=3, config=OFF)
    start(tmp_path, [6], attempt=3, resumed=5)
    rows = history(inspect(tmp_path))
    assert_mirrors(rows, tmp_path)
    assert [row["attempt"] for row in rows] == [1, 1, 1, 3, 3, 3]


class FakeRun:
    """W&B's module and its run in one; it fails at the row of an epoch."""

    url, id = "http://nowhere/oval", "abc"

    def __init__(self, fails_at=0, summary=None):
        self.rows, self.artifacts, self.options = [], [], {}
        self.fails_at, self.summary = fails_at, summary or {}

    def init(self, **options):
        self.options = options
        return self

    def log(self, row):
        if row["epoch"] == self.fails_at:
            raise RuntimeError("gone")
        self.rows.append(row)

    def log_artifact(self, artifact, aliases):
        self.artifacts.append((artifact, aliases))

    def define_metric(self, *_, **__):
        pass

    def finish(self, exit_code):
        pass


def fake(monkeypatch, **options):
    fake_run = FakeRun(**options)
    artifact = types.SimpleNamespace(add_dir=lambda _: None)
    module = types.SimpleNamespace(
        init=fake_run.init, Settings=dict, Artifact=lambda *_, **__: artifact
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return fake_run


def test_rows_after_a_failure_of_the_mirror_are_sent_at_the_next_resume(
    tmp_path, monkeypatch, capsys
):
    failing = fake(monkeypatch, fails_at=3)
    start(tmp_path, range(1, 6), attempt=0)
    assert [row["epoch"] for row in failing.rows] == [1, 2]
    assert capsys.readouterr().err.count("the mirror to W&B ends") == 1
    whole = fake(monkeypatch)
    start(tmp_path, [6], attempt=1, resumed=5)
    assert_mirrors(whole.rows, tmp_path)


def test_what_replaces_superseded_rows_is_sent_though_they_had_been_mirrored(tmp_path, monkeypatch):
    fake(monkeypatch)
    start(tmp_path, range(1, 7), attempt=0)
    for config in (OFF, OFFLINE):
        workdir = tmp_path / config.mode
        workdir.mkdir()
        fake(monkeypatch)
        start(workdir, range(1, 7), attempt=0)
        # The epochs 5 and 6 of this start never reach the mirror, or only a fragment that is lost.
        record(begin(workdir, 1, 4, config), range(5, 9), 1)
        resumed = fake(monkeypatch)
        start(workdir, [9], attempt=2, resumed=8)
        assert [row["epoch"] for row in resumed.rows] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(("summary", "first"), [(3, 4), (0, 1)])
def test_online_a_resume_sends_what_the_server_lacks(tmp_path, monkeypatch, summary, first):
    fake(monkeypatch)
    record(begin(tmp_path, 1, config=ONLINE), range(1, 6), 1)  # and is killed
    # The server tells the last row that it got; one of an earlier start says nothing of this one.
    told = {"epoch": summary or 5, "attempt": 1 if summary else 0}
    resumed = fake(monkeypatch, summary=told)
    start(tmp_path, [6], attempt=2, resumed=5, config=ONLINE)
    assert [row["epoch"] for row in resumed.rows] == list(range(first, 7))


@pytest.mark.usefixtures("fresh_wandb")
def test_an_online_run_goes_on_where_the_server_is(tmp_path, monkeypatch, server):
    for name, value in server.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    start(tmp_path, [1, 2, 3], attempt=0, config=ONLINE)
    (tmp_path / "wandb" / "mirrored.json").unlink()  # as if it had been killed
    record([JsonlSink(tmp_path / "metrics.jsonl")], [4], 0)
    start(tmp_path, [5], attempt=1, resumed=4, config=ONLINE)
    assert [(row["epoch"], row["attempt"]) for row in server.rows] == [
        *[(1, 0), (2, 0), (3, 0)],
        *[(4, 1), (5, 1)],
    ]
    assert [row["_step"] for row in server.rows] == list(range(5))


def test_only_online_the_best_policy_goes_up_while_the_run_goes_on(tmp_path, monkeypatch):
    for mode, count in (("offline", 0), ("online", 1)):
        fake_run = fake(monkeypatch)
        sink = WandbSink(WandbConfig(mode=mode), tmp_path, "oval-s0", Config())
        sink.keep(tmp_path / "policy")
        sink.close()
        assert [aliases for _, aliases in fake_run.artifacts] == [["latest", "best"]] * count


def test_a_group_is_what_differs_in_seeds_alone():
    one = group_of("oval-s0", Config())
    other = Config(seed=7, num_seeds=2, workdir="runs/b", run=RunConfig(minutes=3.0))
    assert one == group_of("oval-s17", other)
    assert one != group_of("oval-s0", Config(agent=QRSACConfig(n_step=3)))
    assert one != group_of("oval-hard-s0", Config())
    assert re.fullmatch(r"oval-[0-9a-f]{8}", one)
    assert group_of("rewards-sophy:time_trial", Config()).startswith("rewards-sophy:time_trial-")


def test_group_and_job_type_come_from_the_flags_then_from_the_environment(tmp_path, monkeypatch):
    def options(config, **more):
        fake_run = fake(monkeypatch)
        WandbSink(config, tmp_path, "oval-s0", Config(), **more).close()
        return fake_run.options["group"], fake_run.options["job_type"]

    named = WandbConfig(group="wet", job_type="sweep")
    assert options(WandbConfig()) == (group_of("oval-s0", Config()), "train")
    assert options(WandbConfig(), job_type="search")[1] == "search"
    monkeypatch.setenv("WANDB_RUN_GROUP", "dry")
    monkeypatch.setenv("WANDB_JOB_TYPE", "reproduce")
    assert options(WandbConfig()) == ("dry", "reproduce")
    assert options(named) == ("wet", "sweep")


def test_records_without_the_newer_options_are_resumed():
    options = flags.to_dict(Config())
    for name in ("job_type", "init_timeout"):
        del options["run"]["wandb"][name]
    check_same_config({"config": options}, Config(), launch.MAY_DIFFER)


@pytest.mark.parametrize("timeout", [0.0, -1.0, math.nan])
def test_a_timeout_is_positive(timeout):
    with pytest.raises(ValueError, match="init_timeout must be positive"):
        WandbConfig(init_timeout=timeout)


def tiny(workdir, num_epochs, wandb):
    """An experiment that learns nothing, and of which only the loop is real."""

    def epoch(state):
        state = {"agent": state["agent"] + 1.0}
        return State(**state), {"train/loss": state["agent"] / 3}

    config = Config(
        train=TrainConfig(num_epochs=num_epochs),
        run=RunConfig(evaluate_every=1, checkpoint_every=1, wandb=wandb),
        seed=3,
        workdir=str(workdir),
    )
    unused: Any = None
    return Experiment(
        name="tiny",
        command="tiny",
        config=config,
        env=unused,
        agent=unused,
        trainer=Trainer(
            init=lambda *_: State(agent=jnp.float32(0)),
            epoch=lambda state: epoch({"agent": state.agent}),
            collect=unused,
            learn=unused,
        ),
        evaluate=lambda agent: {"score": agent},
        score="score",
        describe=lambda _: "",
        bundle_extra={},
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    agent: jax.Array


@pytest.fixture
def small_bundles(monkeypatch):
    def save(_, workdir, *__):
        (workdir / "policy").mkdir(exist_ok=True)
        (workdir / "policy" / "policy.json").write_text("{}")

    monkeypatch.setattr(launch, "_save_bundle", save)


@pytest.mark.usefixtures("small_bundles")
def test_a_run_is_mirrored_with_its_options_its_media_and_its_policy(tmp_path, server):
    run(tiny(tmp_path, 2, OFF), tmp_path)
    (tmp_path / "old.png").write_bytes(b"of something else")
    os.utime(tmp_path / "old.png", (0, 0))
    outcome = run(tiny(tmp_path, 4, WandbConfig()), tmp_path)
    for name in ("report", "replay"):
        (tmp_path / f"{name}.html").write_text(f"<p>{name}</p>")
    Image.new("RGB", (4, 4)).save(tmp_path / "map.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "lap.gif")
    report_end(outcome, tmp_path / "report.html")

    found = inspect(tmp_path)
    rows = history(found)
    assert_mirrors([row for row in rows if "epoch" in row], tmp_path)
    (media,) = [row for row in rows if "epoch" not in row]
    names = ["env_steps", "evaluations", "media/lap", "media/map", "media/replay", "media/report"]
    assert sorted({key.partition(".")[0] for key in media}) == names
    for name in ("report", "replay"):
        (page,) = (tmp_path / "wandb").glob(f"offline-run-*/files/media/html/media/{name}_*.html")
        assert page.read_text() == f"<p>{name}</p>"

    (table,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/evaluations_*.json")
    table = json.loads(table.read_text())
    # Of both starts; the score is the sum of the epochs.
    assert table["columns"] == ["epoch", "env_steps", "updates", "eval/score"]
    assert [line[0] for line in table["data"]] == [1, 2, 3, 4]
    recorded = [row["eval/score"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert [line[3] for line in table["data"]] == recorded

    told = [entry["run"] for entry in found if entry["type"] == "run"][-1]
    assert told["display_name"] == "tiny-s3" and told["job_type"] == "train"
    assert told["run_group"] == group_of("tiny-s3", tiny(tmp_path, 4, OFFLINE).config)
    assert told["config"]["update"]["seed"] == 3
    axes = [entry["metric"] for entry in found if entry["type"] == "metric"]
    assert any(axis.get("step_metric") == "env_steps" for axis in axes)

    sync(tmp_path, server)
    summary, last = json.loads(server.summary), read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert {key: summary[key] for key in last} == last
    assert summary["media/report"]["_type"] == "html-file"
    assert summary["media/map"]["_type"] == "image-file"
    assert summary["media/lap"]["_type"] == "video-file"
    assert summary["evaluations"]["_type"] == "table-file"
    model, table = sorted(server.artifacts, key=lambda one: one["artifactTypeName"])
    assert model["artifactTypeName"] == "model" and table["artifactTypeName"] == "run_table"
    assert model["artifactCollectionName"] == f"tiny-s3-{told['run_id']}-policy"
    assert {alias["alias"] for alias in model["aliases"]} == {"best", "latest"}


def test_wandb_s_agent_runs_cells_of_their_own_that_reach_the_server(tmp_path, server):
    """A real agent, of a sweep whose command names no directory, as those of our files."""
    script = tmp_path / "cell.py"
    script.write_text(
        f"""if True:
        import sys
        from core_rl import launch
        from core_rl.tracking import WandbConfig
        from tests.core_rl.test_wandb import tiny

        launch._save_bundle = lambda *_: None
        num_epochs = int(sys.argv[1].removeprefix("--train.num_epochs="))
        workdir = {str(tmp_path / "run")!r}
        launch.run(tiny(workdir, num_epochs, WandbConfig()), workdir)
        """
    )
    server.sweep = json.dumps({"command": [sys.executable, str(script), "${args}"]})
    for name, num_epochs in (("one", 1), ("two", 2)):
        arguments = {"train.num_epochs": {"value": num_epochs}}
        server.proposals.append({"type": "run", "run_id": name, "program": "", "args": arguments})
    done = subprocess.run(
        [WANDB, "agent", "me/champion-control/abc"],
        env={**os.environ, **server.environment(tmp_path / "cache"), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name, num_epochs in (("one", 1), ("two", 2)):
        cell = tmp_path / "run/sweep-abc" / name
        assert len(read_metrics(cell / "metrics.jsonl")) == num_epochs
    assert server.streams >= {"one", "two"}
    assert [row["epoch"] for row in server.rows] == [1, 1, 2]


def test_under_an_agent_only_disabled_keeps_a_run_from_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_RUN_ID", "one")
    for config, mode in ((OFFLINE, "online"), (ONLINE, "online"), (OFF, None)):
        fake_run = fake(monkeypatch)
        WandbSink(config, tmp_path, "oval-s0", Config()).close()
        assert fake_run.options.get("mode") == mode


@pytest.mark.usefixtures("small_bundles", "fresh_wandb")
def test_a_server_that_is_away_costs_one_line_and_no_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    began = time.monotonic()
    outcome = run(tiny(tmp_path, 3, WandbConfig(mode="online", init_timeout=2.0)), tmp_path)
    report_end(outcome)
    assert time.monotonic() - began < 20.0
    warned = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
    assert len(warned) == 1
    assert warned[0].startswith("warning: the mirror to W&B ends (CommError: ")
    assert NOWHERE in warned[0]
    assert warned[0].endswith(f"{tmp_path / 'metrics.jsonl'} goes on")
    assert [row["epoch"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
