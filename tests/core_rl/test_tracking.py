"""Work directories, metrics, records and the mirror to W&B, including what a kill leaves behind."""

import dataclasses
import errno
import fcntl
import json
import math
import os
import subprocess
import sys
import threading
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest

from core_rl import tracking
from core_rl.errors import UserError
from core_rl.tracking import JsonlSink, WandbConfig, WandbSink, open_workdir, read_metrics


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    n_step: int = 7
    discount: float = math.nan


@dataclasses.dataclass(frozen=True)
class Config:
    agent: AgentConfig = AgentConfig()
    seed: int = 0
    minutes: float = 0.0


@pytest.fixture
def metrics(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, *rows):
    sink = JsonlSink(path)
    for row in rows:
        sink.write(row)
    sink.close()


class TestWorkdir:
    def test_is_created_with_its_parents(self, tmp_path):
        with open_workdir(tmp_path / "a" / "b") as directory:
            assert directory == tmp_path / "a" / "b"
            assert directory.is_dir()

    def test_is_closed_to_a_second_run_which_learns_the_process(self, tmp_path):
        with open_workdir(tmp_path):
            with pytest.raises(UserError, match=f"in use by process {os.getpid()}$"):
                with open_workdir(tmp_path):
                    pass
        with open_workdir(tmp_path):
            pass

    def test_is_looked_at_without_locking_others_out(self, tmp_path):
        (tmp_path / "lock").write_text("")
        with open(tmp_path / "lock") as lock:
            # Others may look at the same time, and who wants to begin waits for a moment.
            fcntl.flock(lock, fcntl.LOCK_SH)
            assert not tracking.is_held(tmp_path)
            timer = threading.Timer(0.2, lambda: fcntl.flock(lock, fcntl.LOCK_UN))
            timer.start()
            with open_workdir(tmp_path):
                assert tracking.is_held(tmp_path)
            timer.join()

    def test_names_what_cannot_be_a_directory(self, tmp_path):
        (tmp_path / "file").write_text("")
        for path, reason in [
            (tmp_path / "file", "it is a file"),
            (tmp_path / "file" / "below", "Not a directory"),
            ("", "must name a directory"),
        ]:
            with pytest.raises(UserError, match=reason) as caught, open_workdir(path):
                pass
            assert str(path) in str(caught.value)


class TestJsonl:
    def test_round_trip_of_arrays_and_of_what_json_lacks(self, metrics):
        row = {
            "epoch": np.int64(3),
            "loss": jnp.float32(0.1),
            "returns": np.array([1.0, math.inf]),
            "nested": {"a": (-math.inf, None, "text", True)},
        }
        write(metrics, row, {"nan": math.nan})
        first, second = read_metrics(metrics)
        assert first == {
            "epoch": 3,
            "loss": float(np.float32(0.1)),
            "returns": [1.0, math.inf],
            "nested": {"a": [-math.inf, None, "text", True]},
        }
        assert math.isnan(second["nan"])

        def refuse(constant):
            raise AssertionError(f"{constant} is not JSON")

        for line in metrics.read_text().splitlines():
            json.loads(line, parse_constant=refuse)

    def test_a_row_is_in_the_file_when_write_returns(self, metrics):
        sink = JsonlSink(metrics)
        sink.write({"epoch": 1})
        assert read_metrics(metrics) == [{"epoch": 1}]
        sink.close()

    def test_a_torn_last_line_is_ignored_and_then_cut_off(self, metrics):
        write(metrics, {"epoch": 1}, {"epoch": 2})
        whole = metrics.read_bytes()
        for length in range(len(whole) // 2 + 1, len(whole)):
            metrics.write_bytes(whole[:length])
            complete = [{"epoch": 1}, {"epoch": 2}][: 2 if length == len(whole) - 1 else 1]
            assert read_metrics(metrics) == complete
            write(metrics, {"epoch": 9})
            assert read_metrics(metrics) == [*complete, {"epoch": 9}]

    def test_damage_within_the_file_is_reported_with_its_line(self, metrics):
        metrics.write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
        with pytest.raises(UserError, match="line 2 is not a JSON object"):
            read_metrics(metrics)

    def test_resume_moves_later_rows_aside_and_loses_none(self, metrics):
        rows = [{"epoch": epoch, "value": epoch / 3} for epoch in range(1, 6)]
        write(metrics, *rows)
        sink = JsonlSink(metrics)
        assert sink.supersede_after(3) == 2
        sink.write({"epoch": 4, "value": -1.0})
        assert sink.supersede_after(4) == 0
        sink.close()
        assert read_metrics(metrics) == [*rows[:3], {"epoch": 4, "value": -1.0}]
        superseded = metrics.with_name("metrics.superseded.jsonl")
        assert read_metrics(superseded) == rows[3:]

        sink = JsonlSink(metrics)
        assert sink.supersede_after(0) == 4
        sink.close()
        assert read_metrics(metrics) == []
        assert len(read_metrics(superseded)) == 6

    def test_a_file_that_cannot_be_opened_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: Not a directory"):
            JsonlSink(tmp_path / "file" / "metrics.jsonl")


class TestRecord:
    def test_says_what_ran_where(self, tmp_path):
        record = tracking.write_record(tmp_path, Config(), seeds=[0, 1])
        assert record == tracking.read_record(tmp_path)
        assert record["argv"] == sys.orig_argv
        assert record["seeds"] == [0, 1]
        assert record["config"]["agent"] == {"n_step": 7, "discount": "nan"}
        assert record["versions"]["packages"]["numpy"] == np.__version__
        assert record["machine"]["num_devices"] >= 1
        assert record["machine"]["memory"] > 1e8
        assert record["environment"].get("JAX_PLATFORMS") == os.environ.get("JAX_PLATFORMS")
        assert record["resumes"] == []

    def test_a_resume_is_added_and_changes_nothing_else(self, tmp_path):
        first = tracking.write_record(tmp_path, Config(), seeds=[0])
        tracking.write_record(tmp_path, Config(), seeds=[0], resumed_epoch=4)
        second = tracking.read_record(tmp_path)
        assert second is not None
        (resume,) = second.pop("resumes")
        assert resume["epoch"] == 4 and resume["config"] == second["config"]
        assert {**second, "resumes": []} == first

    def test_names_the_experiment_that_has_these_options(self, tmp_path, monkeypatch):
        started = ["python", "-m", "experiments.of_this_config", "--seed=1"]
        monkeypatch.setattr(sys, "orig_argv", started)
        for name, default, expected in [
            ("started", Config(seed=1), "experiments.of_this_config"),
            ("led_to", AgentConfig(), __name__),  # which has options of its own
        ]:
            monkeypatch.setattr(sys.modules["__main__"], "CONFIG", default, raising=False)
            (tmp_path / name).mkdir()
            record = tracking.write_record(tmp_path / name, Config(), seeds=[0])
            assert record["module"] == expected

    def test_a_resume_with_another_config_names_the_flags(self, tmp_path):
        tracking.write_record(tmp_path, Config(), seeds=[0])
        other = Config(agent=AgentConfig(n_step=3), seed=1, minutes=5.0)
        with pytest.raises(UserError) as caught:
            tracking.write_record(tmp_path, other, seeds=[0], may_differ=("minutes",))
        assert str(caught.value) == (
            "this run was started with --agent.n_step=7 (now 3), --seed=0 (now 1): "
            "repeat those, or choose another --workdir"
        )
        tracking.write_record(tmp_path, other, seeds=[0], may_differ=("agent", "seed", "minutes"))

    def test_a_damaged_record_is_named(self, tmp_path):
        assert tracking.read_record(tmp_path) is None
        for content in ("{", "[]", "{}"):
            (tmp_path / "record.json").write_text(content)
            with pytest.raises(UserError, match=r"record\.json"):
                tracking.read_record(tmp_path)

    def test_knows_commit_and_changes_of_its_code(self, tmp_path, monkeypatch):
        def git(*arguments):
            identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
            command = ["git", "-C", str(tmp_path), *identity, *arguments]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        monkeypatch.setattr(tracking, "CODE", tmp_path)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        assert tracking.code_version() == {"git_sha": None, "dirty": None}
        git("init")
        (tmp_path / "tracking.py").write_text("a = 1\n")
        assert tracking.code_version() == {"git_sha": None, "dirty": None}  # installed, not tracked
        git("add", ".")
        git("commit", "-m", "first")
        sha = git("rev-parse", "HEAD").strip()
        assert tracking.code_version() == {"git_sha": sha, "dirty": False}
        (tmp_path / "tracking.py").write_text("a = 2\n")
        assert tracking.code_version() == {"git_sha": sha, "dirty": True}
        # What an experiment keeps in the repository may be left out.
        assert tracking.code_version(but=("*.py",)) == {"git_sha": sha, "dirty": False}
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "results.jsonl").write_text("{}\n")
        assert tracking.code_version(but=("*.py",)) == {"git_sha": sha, "dirty": True}
        but = ("*.py", "**/results.jsonl")
        assert tracking.code_version(but=but) == {"git_sha": sha, "dirty": False}

    def test_a_file_is_replaced_as_a_whole_or_not_at_all(self, tmp_path, monkeypatch):
        path = tmp_path / "record.json"
        tracking.write_json(path, {"a": 1})

        def fail(*_):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(UserError, match=r"cannot write .*record.json: Input/output error"):
            tracking.write_json(path, {"a": 2})
        assert json.loads(path.read_text()) == {"a": 1}
        assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def wandb_environment(monkeypatch):
    """W&B's variables are set by the sink and by W&B itself; leave none to later tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    yield
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class FakeRun:
    def __init__(self, failing=""):
        self.rows, self.failing, self.exit_code = [], failing, None

    def define_metric(self, *_, **__):
        pass

    def log(self, row):
        if self.failing == "log":
            raise RuntimeError("the service\nis gone")
        self.rows.append(row)

    def finish(self, exit_code):
        if self.failing == "finish":
            raise RuntimeError("the service\nis gone")
        self.exit_code = exit_code


def install_fake(monkeypatch, run):
    def init(**_):
        if run.failing == "init":
            raise RuntimeError("the service\nis gone")
        return run

    fake = types.SimpleNamespace(init=init, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", fake)


@pytest.mark.usefixtures("wandb_environment")
class TestWandb:
    def test_offline_run_holds_the_rows_and_keeps_to_the_workdir(self, tmp_path):
        ids = []
        for epoch in (1, 2):  # the second is a resume
            sink = WandbSink(WandbConfig(), tmp_path, "oval-s0", Config())
            sink.write({"epoch": epoch, "env_steps": 100 * epoch, "eval/lap_time": 12.625})
            sink.close()
            ids.append((tmp_path / "wandb" / "run_id").read_text())
        assert ids[0] == ids[1]
        runs = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
        assert len(runs) == 2
        for path in runs:
            # W&B's own process may still be writing when finish returns.
            wait_until(lambda path=path: b"12.625" in path.read_bytes())
            content = path.read_bytes()
            assert b"eval/lap_time" in content
            assert ids[0].encode() in content
        assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "wandb" / "cache")

    def test_disabled_writes_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
        sink = WandbSink(WandbConfig(mode="disabled"), tmp_path, "a", Config())
        sink.write({"epoch": 1})
        sink.close()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("failing", ["init", "log", "finish"])
    def test_a_failure_warns_once_and_ends_only_the_mirror(
        self, tmp_path, monkeypatch, capsys, failing
    ):
        install_fake(monkeypatch, FakeRun(failing))
        sink = WandbSink(WandbConfig(), tmp_path, "a", Config())
        for epoch in range(3):
            sink.write({"epoch": epoch})
        sink.close()
        sink.close()
        (warning,) = capsys.readouterr().err.splitlines()
        assert warning == (
            "warning: the mirror to W&B ends (RuntimeError: the service is gone); "
            f"{tmp_path / 'metrics.jsonl'} goes on"
        )

    def test_a_missing_package_is_a_failure_of_the_mirror(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "wandb", None)
        WandbSink(WandbConfig(), tmp_path, "a", Config()).write({"epoch": 1})
        assert capsys.readouterr().err.count("the mirror to W&B ends") == 1

    def test_rows_of_several_seeds_show_their_mean_and_each_seed(self, tmp_path, monkeypatch):
        run = FakeRun()
        install_fake(monkeypatch, run)
        sink = WandbSink(WandbConfig(), tmp_path, "a", Config())
        sink.write({"epoch": 1, "eval/return": [1.0, 4.0]})
        sink.close(exit_code=1)
        assert run.rows == [
            {
                "epoch": 1,
                "eval/return": 2.5,
                "eval/return/seed_0": 1.0,
                "eval/return/seed_1": 4.0,
                "attempt": 0,
            }
        ]
        assert run.exit_code == 1
