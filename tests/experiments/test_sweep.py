"""Sweeps of a tiny experiment: whole, killed and resumed, failing, and with wrong files."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from core_rl import flags
from core_rl.errors import UserError
from core_rl.tracking import is_held, open_workdir, write_json
from experiments import sophy_time_trial, sweep
from experiments.executors import Grant, Local, Slurm, interrupted
from experiments.sweep import SweepConfig, arguments_of, propose, read_sweep
from tests.experiments import tiny_experiment

ROOT = Path(__file__).parents[2]
PLAN = {
    "program": "tests/experiments/tiny_experiment.py",
    "method": "grid",
    "metric": {"name": "eval/score", "goal": "maximize"},
    "parameters": {"agent.x": {"values": [0.1, 0.3]}, "seed": {"values": [0, 1]}},
}


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def write(path, **changes):
    path.write_text(yaml.safe_dump({**PLAN, **changes}))
    return str(path)


def command(file, out, *more):
    arguments = ["-m", "experiments.sweep", f"--file={file}", f"--out={out}", *more]
    return [sys.executable, *arguments]


def outcomes(out):
    """By parameters: state and what was recorded of each epoch."""
    found = {}
    for directory in sorted((out / "cells").iterdir()):
        cell = json.loads((directory / "cell.json").read_text())
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
        scores = [(row["epoch"], row["eval/score"]) for row in rows]
        found[json.dumps(cell["parameters"], sort_keys=True)] = (cell["state"], scores)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    parameters = {
        "agent.x": {"values": [0.1, 0.3, 0.5]},
        "seed": {"values": [0, 1]},
        "train.sleep": {"value": 0.15},
        "train.num_epochs": {"value": 4},
    }
    file = write(folder / "plan.yaml", parameters=parameters)
    subprocess.run(
        command(file, folder / "out", "--novmap"),
        check=True,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return file, outcomes(folder / "out")


def test_a_killed_sweep_goes_on_and_ends_as_an_undisturbed_one(undisturbed, tmp_path):
    file, expected = undisturbed
    assert len(expected) == 6 and all(state == "finished" for state, _ in expected.values())
    out = tmp_path / "out"
    doomed = subprocess.Popen(command(file, out, "--novmap"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60.0
    while not list(out.glob("cells/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    doomed.kill()
    doomed.wait()
    cells = [json.loads(path.read_text()) for path in out.glob("cells/*/cell.json")]
    assert any(cell["state"] == "running" for cell in cells) and len(cells) < 6
    again = subprocess.run(command(file, out, "--novmap"), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert outcomes(out) == expected
    # Once more changes nothing and starts nothing.
    times = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/metrics.jsonl")}
    told = subprocess.run(command(file, out, "--novmap", "--json"), capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    rows = json.loads(told.stdout)["cells"]
    assert rows[0]["parameters"]["agent.x"] == 0.3 and rows[0]["parameters"]["seed"] == 1


def test_a_signal_ends_the_cells_in_order_and_they_resume(undisturbed, tmp_path):
    file, expected = undisturbed
    out = tmp_path / "out"
    process = subprocess.Popen(command(file, out, "--novmap"), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60.0
    while not list(out.glob("cells/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "the same command goes on" in said
    states = {json.loads(path.read_text())["state"] for path in out.glob("cells/*/cell.json")}
    assert states <= {"waiting", "finished"} and "waiting" in states
    assert sweep.main(SweepConfig(file, str(out), vmap=False)) == 0
    assert outcomes(out) == expected


def test_a_failed_cell_is_told_and_stops_no_other(tmp_path, capsys):
    parameters = {"agent.kind": {"values": ["fails", "plain"]}}
    file, out = write(tmp_path / "plan.yaml", parameters=parameters), tmp_path / "out"
    assert sweep.main(SweepConfig(file, str(out), workers=1)) == 1
    told = capsys.readouterr()
    assert "cell 000 failed: exit code 1:" in told.err
    assert "not finite in epoch 1: loss" in told.err and "2 of 2 cells done" in told.err
    assert "failed" in told.out and "finished" in told.out
    # Without --retry it is left alone.
    before = (out / "cells/000/log.txt").stat().st_size
    assert sweep.main(SweepConfig(file, str(out), workers=1)) == 1
    assert (out / "cells/000/log.txt").stat().st_size == before
    assert sweep.main(SweepConfig(file, str(out), workers=1, retry=True)) == 1
    assert (out / "cells/000/log.txt").stat().st_size > before


def test_a_cell_whose_metrics_are_damaged_fails_and_stops_no_other(tmp_path, capsys, monkeypatch):
    parameters = {"agent.x": {"values": [0.1, 0.3, 0.5]}}
    file, out = write(tmp_path / "plan.yaml", parameters=parameters), tmp_path / "out"
    poll = Local.poll

    def damages(self, job):
        code = poll(self, job)
        metrics = out / "cells/000/metrics.jsonl"
        if code == 0 and metrics.is_file():
            metrics.write_text("no JSON\n" + metrics.read_text())
        return code

    monkeypatch.setattr(Local, "poll", damages)
    assert sweep.main(SweepConfig(file, str(out), workers=1)) == 1
    assert "cell 000 failed:" in capsys.readouterr().err
    cells = [json.loads((out / f"cells/00{k}/cell.json").read_text()) for k in range(3)]
    assert [cell["state"] for cell in cells] == ["failed", "finished", "finished"]
    assert "line 1 is not a JSON object" in cells[0]["reason"]


def test_a_cell_whose_time_was_up_says_so(tmp_path, capsys):
    parameters = {"train.stop_at": {"values": [0, 2]}}
    file, out = write(tmp_path / "plan.yaml", parameters=parameters), tmp_path / "out"
    assert sweep.main(SweepConfig(file, str(out))) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.endswith("time was up at epoch 2 of 3") for line in told] == [False, True]
    assert "finished" in told[1]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"parameters": {"agent.x": {"values": [0.1, 0.4]}}}, {}, r"parameters\.agent\.x\.values"),
        ({"metric": {"name": "eval/score", "goal": "minimize"}}, {}, r"goal maximize \(now minim"),
        ({}, {"seed": 1}, r"seed 0 \(now 1\): repeat that, or choose another --out"),
    ],
)
def test_a_sweep_that_has_changed_is_refused(tmp_path, changes, options, message):
    parameters = {"agent.x": {"values": [0.1, 0.3]}}
    file, out = write(tmp_path / "plan.yaml", parameters=parameters), tmp_path / "out"
    assert sweep.main(SweepConfig(file, str(out), cells=1)) == 0
    write(tmp_path / "plan.yaml", **{"parameters": parameters, **changes})
    with pytest.raises(UserError, match=message) as caught:
        sweep.main(SweepConfig(file, str(out), **options))
    assert "\n" not in str(caught.value) and len(list((out / "cells").iterdir())) == 1
    # More cells are no other sweep, and cells of a time without `sweep.json` are taken as they are.
    write(tmp_path / "plan.yaml", parameters=parameters)
    (out / "sweep.json").unlink()
    assert sweep.main(SweepConfig(file, str(out))) == 0
    assert len(list((out / "cells").iterdir())) == 2 and (out / "sweep.json").is_file()


def test_a_cell_that_was_deleted_leaves_a_gap(tmp_path):
    file = write(tmp_path / "plan.yaml", parameters={"agent.x": {"values": [0.1, 0.3, 0.5]}})
    out = tmp_path / "out"
    assert sweep.main(SweepConfig(file, str(out), cells=2)) == 0
    kept = (out / "cells/001/cell.json").read_text()
    shutil.rmtree(out / "cells/000")
    assert sweep.main(SweepConfig(file, str(out))) == 0
    assert (out / "cells/001/cell.json").read_text() == kept
    assert [path.name for path in sorted((out / "cells").iterdir())] == ["001", "002", "003"]


def test_seeds_of_a_grid_train_side_by_side(tmp_path, capsys):
    file, out = write(tmp_path / "plan.yaml"), tmp_path / "out"
    assert sweep.main(SweepConfig(file, str(out))) == 0
    told = capsys.readouterr().err
    assert "a cell trains 2 of seed side by side" in told and "s of compilation" in told
    cells = sorted((out / "cells").iterdir())
    assert len(cells) == 2
    rows = [json.loads(line) for line in (cells[0] / "metrics.jsonl").open()]
    assert len(rows[-1]["eval/score"]) == 2


def test_numbers_that_need_no_other_program_are_a_population(tmp_path, capsys):
    parameters = {**PLAN["parameters"], "agent.discount": {"values": [0.5, 0.7, 0.6]}}
    file = write(tmp_path / "plan.yaml", parameters=parameters)
    tables = []
    for name, vmap in (("together", True), ("apart", False)):
        config = SweepConfig(file, str(tmp_path / name), vmap=vmap, json=True)
        assert sweep.main(config) == 0
        told = capsys.readouterr()
        tables.append(json.loads(told.out)["cells"])
        saved = "a cell trains 2 of seed x 3 of agent.discount side by side" in told.err
        assert saved == vmap
    together, apart = tables
    assert len({row["cell"] for row in together}) == 2 and len({row["cell"] for row in apart}) == 12
    # A row per member, with the mean over its seeds, as the cells of their own have it.
    assert len(together) == 6
    for row in together:
        asked = row["parameters"]
        own = [
            other["best"]
            for other in apart
            if all(
                other["parameters"][name] == asked[name] for name in ("agent.x", "agent.discount")
            )
        ]
        assert len(own) == 2 and row["best"] == pytest.approx(sum(own) / 2)
    assert together[0]["parameters"]["agent.discount"] == 0.7
    assert together[0]["parameters"]["agent.x"] == 0.3
    # The line of the best cell names the best member.
    cell = json.loads((Path(together[0]["cell"]) / "cell.json").read_text())
    assert cell["best"] == together[0]["best"] == pytest.approx(1.0 + 0.07 + 0.005)


def test_random_proposals_repeat_and_bayes_finds_the_top(tmp_path):
    parameters = {"agent.x": {"min": 0.0, "max": 1.0}}
    file = write(tmp_path / "random.yaml", method="random", parameters=parameters)
    plan = read_sweep(file, True)
    first = propose(plan, [], 0)
    assert propose(plan, [], 0) == first != propose(plan, [], 1)
    file = write(tmp_path / "bayes.yaml", method="bayes", parameters=parameters)
    plan, cells = read_sweep(file, True), []
    for number in range(14):
        proposed = propose(plan, cells, 0)
        score = -((proposed["agent.x"] - 0.3) ** 2)
        cells.append(sweep.Cell(tmp_path / str(number), proposed, "finished", "", score))
    assert max(cell.best for cell in cells) > -0.01


def test_slurm_s_local_cluster_runs_cells(tmp_path):
    executor = Slurm(1, tmp_path, Grant(hours=1.0), cluster="local")
    arguments = ["-m", "tests.experiments.tiny_experiment", f"--workdir={tmp_path / 'good'}"]
    good = executor.start("000", arguments, tmp_path)
    bad = executor.start("001", [*arguments, "--agent.kind=fails"], tmp_path)
    deadline = time.monotonic() + 120.0
    codes = [None, None]
    while None in codes and time.monotonic() < deadline:
        codes = [executor.poll(good), executor.poll(bad)]
        time.sleep(0.2)
    assert codes == [0, 1]
    assert len((tmp_path / "good/metrics.jsonl").read_text().splitlines()) == 3
    assert "not finite" in (tmp_path / "log.txt").read_text()


def started(out, count=1):
    """Waits until so many cells have recorded an epoch."""
    deadline = time.monotonic() + 60.0
    while len(list(out.glob("**/metrics.jsonl"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def sigint():
    """SIGINT as in a terminal: a shell's background jobs ignore it, and so do their children, among
    them submitit's local cluster, which is asked to stop by it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
def test_a_job_of_a_cluster_waits_for_its_directory_and_passes_a_request_to_stop_on(tmp_path):
    executor = Slurm(1, tmp_path, cluster="local")
    arguments = ["-m", "tests.experiments.tiny_experiment", f"--workdir={tmp_path / 'cell'}"]
    arguments += ["--train.sleep=0.2", "--train.num_epochs=1000"]
    (tmp_path / "cell").mkdir()
    with open_workdir(tmp_path / "cell"):  # as a job of a killed sweep does
        job = executor.start("000", arguments, tmp_path / "cell")
        time.sleep(5.0)
        assert executor.poll(job) is None and not list(tmp_path.glob("cell/metrics.jsonl"))
    started(tmp_path)
    executor.stop([job])
    deadline = time.monotonic() + 60.0
    while (code := executor.poll(job)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert code is not None and interrupted(code)
    assert (
        not is_held(tmp_path / "cell")
        and "Traceback" not in (tmp_path / "cell/log.txt").read_text()
    )


@pytest.mark.parametrize(
    ("state", "code"),
    [("CANCELLED by 1000", 143), ("TIMEOUT", 143), ("PREEMPTED", 143), ("FAILED", 1)],
)
def test_what_slurm_ended_was_interrupted(state, code):
    class Job:
        def done(self):
            return True

        def exception(self):
            return RuntimeError("no result")

    job = Job()
    job.state = state
    assert Slurm.poll(None, job) == code


def test_a_cell_that_somebody_else_stops_waits_for_the_next_sweep(tmp_path, capsys):
    parameters = {"agent.kind": {"values": ["asked", "plain"]}}
    file, out = write(tmp_path / "plan.yaml", parameters=parameters), tmp_path / "out"
    assert sweep.main(SweepConfig(file, str(out), workers=1)) == 1
    told = capsys.readouterr().err
    assert told.count("cell 000 was interrupted") == 1 and "1 of 2 cells done" in told
    assert "the same command goes on" in told
    cells = [json.loads((out / f"cells/00{k}/cell.json").read_text()) for k in range(2)]
    assert [cell["state"] for cell in cells] == ["waiting", "finished"]


def test_a_second_signal_ends_the_cells_at_once(tmp_path):
    parameters = {"agent.x": {"values": [0.1]}, "train.sleep": {"value": 300.0}}
    file, out = write(tmp_path / "plan.yaml", parameters=parameters), tmp_path / "out"
    process = subprocess.Popen(command(file, out), stderr=subprocess.PIPE, text=True)
    started(out)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "once more ends it at once" not in process.stderr.readline():
        pass
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 1 and "Traceback" not in said
    assert json.loads((out / "cells/000/cell.json").read_text())["state"] == "waiting"
    assert not is_held(out / "cells/000")


def test_a_directory_that_is_in_use_holds_up_no_other_cell(tmp_path):
    parameters = {"agent.x": {"values": [0.1, 0.3]}}
    file, out = write(tmp_path / "plan.yaml", parameters=parameters), tmp_path / "out"
    for name, x in (("000", 0.1), ("001", 0.3)):
        (out / "cells" / name).mkdir(parents=True)
        write_json(out / "cells" / name / "cell.json", {"parameters": {"agent.x": x}})
    with open_workdir(out / "cells/000"):
        process = subprocess.Popen(
            command(file, out, "--workers=1"), stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        while "still in use" not in lines[-1]:
            lines.append(process.stderr.readline())
        assert "cells/000 is still in use" in lines[-1]
        assert json.loads((out / "cells/001/cell.json").read_text())["state"] == "finished"
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and "still in use" not in said


def test_cells_that_share_a_gpu_share_its_memory(tmp_path, monkeypatch):
    script = (
        "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], "
        "os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION'))"
    )

    def told(workers):
        executor = Local(workers, tmp_path)
        found = []
        for number in range(workers):
            directory = tmp_path / f"{workers}-{number}"
            directory.mkdir()
            assert executor.start("a", ["-c", script], directory).wait() == 0
            executor._places[number] = None if number + 1 == workers else _Busy()
            found.append((directory / "log.txt").read_text().split())
        return found

    class _Busy:
        def poll(self):
            return None

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert told(2) == [["4", "None"], ["7", "None"]]
    assert told(4) == [["4", "0.450"], ["7", "0.450"]] * 2


def test_cells_get_their_share_of_the_cpus(tmp_path):
    executor = Local(2, tmp_path)
    script = "import os; print(sorted(os.sched_getaffinity(0)))"
    jobs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        jobs.append(executor.start(name, ["-c", script], tmp_path / name))
    for job in jobs:
        assert job.wait() == 0
    shares = [set(json.loads((tmp_path / name / "log.txt").read_text())) for name in ("a", "b")]
    cpus = os.sched_getaffinity(0)
    assert shares[0] | shares[1] == cpus
    assert len(cpus) < 2 or not shares[0] & shares[1]


def test_exit_codes_of_those_who_were_asked_to_stop():
    assert [interrupted(code) for code in (143, 130, -15, -2)] == [True] * 4
    assert [interrupted(code) for code in (0, 1, 2, -9, 137)] == [False] * 5


@pytest.mark.parametrize("path", sorted((ROOT / "experiments/sweeps").glob("*.yaml")), ids=str)
def test_our_sweep_files_are_understood_here_and_by_a_wandb_agent(path):
    from wandb.sdk.launch.sweeps import utils

    plan = read_sweep(str(path), False)
    proposed = propose(plan, [], 0)
    flags.parse(plan.defaults, arguments_of(proposed))
    # What `wandb agent` makes of the file's own command and the same proposal.
    told = {"args": {name: {"value": value} for name, value in proposed.items()}}
    written = yaml.safe_load(path.read_text())["command"]
    # What an experiment's default would cut short, a sweep's cells would not share.
    assert flags.parse(plan.defaults, arguments_of(proposed)).run.minutes == 0
    filled = utils.create_sweep_command(written)
    arguments = utils.create_sweep_command_args(told)["args"]
    assert arguments == arguments_of(proposed)
    flags.parse(plan.defaults, arguments)
    assert filled[:4] == ["./run", "python", "-m", plan.module]
    # What it names is there.
    importlib.import_module(plan.module).make_experiment(flags.parse(plan.defaults, arguments))


def test_there_are_sweep_files():
    assert len(list((ROOT / "experiments/sweeps").glob("*.yaml"))) >= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"agent.y": {"values": [1]}}}, "has no such parameter: .*agent.y"),
        ({"parameters": {"agent.x": {"values": ["fast"]}}}, "does not take a proposal"),
        ({"parameters": {"agent.x": {"values": [1, "fast"]}}}, "does not take a proposal: .*fast"),
        ({"parameters": {}}, "should be non-empty"),
        ({"parameters": {"agent.x": 3}}, r"parameters\.agent\.x must be a mapping such as .*got 3"),
        ({"parameters": {"seed": 3}}, r"parameters\.seed must be a mapping such as .*got 3"),
        ({"parameters": ["agent.x"]}, r"parameters must be a mapping such as .*got \['agent\.x'\]"),
        ({"parameters": {"agent.x": {"min": 0.0, "max": 1.0}}}, "must have value or values in a"),
        ({"metric": "eval/score"}, "metric must be a mapping such as .*got 'eval/score'"),
        ({"run_cap": "many"}, "run_cap must be a whole number, got 'many'"),
        ({"method": "guess"}, "method must be grid, random, bayes, got 'guess'"),
        ({"program": "experiments/nothing.py"}, "cannot be imported"),
        ({"program": "experiments/ablation.py"}, "has no CONFIG, it is not an experiment"),
        ({"metric": {"name": "x", "goal": "up"}}, "metric.goal must be maximize or minimize"),
        ({"early_terminate": {"type": "hyperband"}}, "'early_terminate' is not supported"),
        ({"method": "random"}, "has no end: name --cells"),
    ],
)
def test_a_wrong_file_is_one_line(changes, message, tmp_path):
    file = write(tmp_path / "plan.yaml", **changes)
    with pytest.raises(UserError, match=message) as caught:
        sweep.main(SweepConfig(file, str(tmp_path / "out")))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/cells/*"))


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="--file is missing"):
        sweep.main(SweepConfig())
    with pytest.raises(UserError, match="No such file"):
        sweep.main(SweepConfig(str(tmp_path / "none.yaml")))
    (tmp_path / "bad.yaml").write_text("method: [grid")
    with pytest.raises(UserError, match="not YAML"):
        sweep.main(SweepConfig(str(tmp_path / "bad.yaml")))


def test_a_damaged_cell_and_a_changed_file_are_refused(tmp_path):
    file, out = write(tmp_path / "plan.yaml"), tmp_path / "out"
    (out / "cells/000").mkdir(parents=True)
    (out / "cells/000/cell.json").write_text('{"parameters": {"agent')
    with pytest.raises(UserError, match=r"cell\.json is damaged"):
        sweep.main(SweepConfig(file, str(out)))
    cell = {"parameters": {"agent.layers": "8"}, "state": "finished", "reason": "", "best": None}
    (out / "cells/000/cell.json").write_text(json.dumps(cell))
    with pytest.raises(UserError, match=r"this sweep has no parameter agent\.layers"):
        sweep.main(SweepConfig(file, str(out)))


def test_the_tiny_experiment_has_the_seams_of_a_real_one():
    names = set(flags.flatten(tiny_experiment.CONFIG))
    assert {"seed", "num_seeds", "workdir", "train.num_epochs"} <= names & set(
        flags.flatten(sophy_time_trial.CONFIG)
    )
