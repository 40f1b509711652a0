"""Comparisons and lists of runs, from records and metrics that are written here."""

import json
import shutil

import numpy as np
import pytest

from core_rl import flags
from core_rl.errors import UserError
from core_rl.tracking import write_json
from experiments import compare, runs
from experiments.compare import CompareConfig, make_groups
from experiments.runs import RunsConfig
from tests.experiments import tiny_experiment
from tests.experiments.tiny_experiment import CONFIG


def make_run(directory, scores, *, seed=0, num_seeds=1, **options):
    """A run with rows of scores [E], or [E][S]."""
    arguments = [f"--{name}={value}" for name, value in options.items()]
    arguments += [f"--seed={seed}", f"--num_seeds={num_seeds}", f"--workdir={directory}"]
    arguments.append(f"--train.num_epochs={len(scores)}")
    directory.mkdir(parents=True)
    record = {
        "started": "2026-01-02T03:04:05+00:00",
        "argv": ["python", "-P", "-m", "tests.experiments.tiny_experiment", *arguments],
        "seeds": list(range(seed, seed + num_seeds)),
        "config": flags.to_dict(flags.parse(CONFIG, arguments)),
        "code": {"git_sha": "0" * 40, "dirty": False},
        "versions": {"packages": {"jax": "0.1.0"}},
        "machine": {"device": "abacus"},
        "resumes": [],
    }
    write_json(directory / "record.json", record)
    rows = [
        {"epoch": k + 1, "env_steps": 100 * (k + 1), "eval/score": score}
        for k, score in enumerate(scores)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "metrics.jsonl").write_text(text)
    return directory


def test_a_population_is_read_as_runs_of_its_members(tmp_path, capsys):
    scores = [[0.0] * 4, [1.0, 2.0, 3.0, 4.0]]
    population = {"agent.population": "discount:0.5,discount:0.7"}
    make_run(tmp_path / "both", scores, num_seeds=2, **population)
    with pytest.raises(UserError, match=r"its runs differ in agent.discount \(0.5 or 0.7\)"):
        compare.main(CompareConfig((str(tmp_path),)))
    config = CompareConfig((str(tmp_path),), group_by=("agent.discount",), json=True)
    rows = {row["group"]: row["each"] for row in told(config, capsys)["groups"]}
    assert rows == {"agent.discount=0.5": [[1.0, 2.0]], "agent.discount=0.7": [[3.0, 4.0]]}
    # Beside runs that were made one by one.
    for seed, score in ((0, 5.0), (1, 6.0)):
        options = {"seed": seed, "agent.discount": 0.9}
        make_run(tmp_path / f"alone{seed}", [0.0, score], **options)
    rows = {row["group"]: row["each"] for row in told(config, capsys)["groups"]}
    assert rows["agent.discount=0.9"] == [[5.0, 6.0]] and len(rows) == 3


@pytest.fixture
def folder(tmp_path):
    """Two values of x with three seeds each; the second is better by one."""
    for x in (0.1, 0.2):
        for seed in range(3):
            shift = seed + (x == 0.2)
            make_run(tmp_path / f"x{x}-s{seed}", [shift, 1.0 + shift], seed=seed, **{"agent.x": x})
    return tmp_path


def told(config, capsys):
    assert compare.main(config) == 0
    return json.loads(capsys.readouterr().out)


def test_groups_are_averaged_and_compared_by_pairs_of_seeds(folder, capsys):
    config = CompareConfig((str(folder),), group_by=("agent.x",), json=True)
    result = told(config, capsys)
    first, second = result["groups"]
    assert first["group"] == "agent.x=0.1" and first["runs"] == 3
    assert first["each"] == [[1.0, 2.0, 3.0]] and second["each"] == [[2.0, 3.0, 4.0]]
    assert first["mean"] == first["iqm"] == pytest.approx(2.0)
    change = second["difference"]
    assert change["paired"] and change["value"] == pytest.approx(1.0)
    # Every pair differs by the same: no spread is left.
    assert change["low"] == pytest.approx(1.0) and change["high"] == pytest.approx(1.0)
    # Of nine pairs of runs 2 3 4 over 1 2 3: six ahead, two level, one behind.
    assert second["probability_of_improvement"] == pytest.approx(7 / 9)
    assert result["differing"] == {"agent.x": ["0.1", "0.2"]}


def test_seeds_trained_side_by_side_are_runs_too(tmp_path, capsys):
    make_run(tmp_path / "a", [[1.0, 2.0], [3.0, 5.0]], num_seeds=2)
    result = told(CompareConfig((str(tmp_path),), json=True), capsys)
    assert result["groups"][0]["each"] == [[3.0, 5.0]]


def test_runs_of_other_lengths_are_compared_where_all_have_been(folder, capsys):
    make_run(folder / "y-long", [5.0, 7.0, 9.0], seed=3, **{"agent.x": 0.2})
    config = CompareConfig(
        (str(folder),), group_by=("agent.x",), ignore=("train.num_epochs",), json=True
    )
    assert compare.main(config) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["at"] == 200.0 and result["groups"][1]["each"] == [[2.0, 3.0, 4.0, 7.0]]
    assert "runs end at env_steps 200 to 300; compared at 200" in printed.err
    assert not result["groups"][1]["difference"]["paired"]


def test_tasks_are_aggregated_not_mixed(tmp_path, capsys):
    for kind in ("plain", "odd"):
        for x in (0.1, 0.2):
            for seed in range(2):
                score = 10.0 * (kind == "odd") + (x == 0.2)
                make_run(
                    tmp_path / f"{kind}{x}{seed}",
                    [0.0, score],
                    seed=seed,
                    **{"agent.x": x, "agent.kind": kind},
                )
    page = tmp_path / "page.html"
    config = CompareConfig(
        (str(tmp_path),), group_by=("agent.x",), task_by=("agent.kind",), html=str(page), json=True
    )
    result = told(config, capsys)
    assert result["groups"][0]["each"] == [[10.0, 10.0], [0.0, 0.0]]
    # Better on both tasks, though the tasks' scores overlap.
    assert result["groups"][1]["probability_of_improvement"] == 1.0
    assert "Performance profiles" in page.read_text()


def test_tasks_are_paired_by_name_not_by_the_order_of_the_runs(tmp_path, capsys):
    # The second group's directories name the tasks in the other order.
    for x, kinds in ((0.1, ("plain", "odd")), (0.2, ("odd", "plain"))):
        for number, kind in enumerate(kinds):
            for seed in range(2):
                make_run(
                    tmp_path / f"x{x}-{number}-{seed}",
                    [0.0, 10.0 if kind == "odd" else 0.0],
                    seed=seed,
                    **{"agent.x": x, "agent.kind": kind},
                )
    config = CompareConfig(
        (str(tmp_path),), group_by=("agent.x",), task_by=("agent.kind",), json=True
    )
    first, second = told(config, capsys)["groups"]
    assert first["each"] == second["each"] == [[10.0, 10.0], [0.0, 0.0]]
    assert second["probability_of_improvement"] == 0.5


def test_a_last_value_that_is_not_finite_is_told_and_draws_nobody_back(folder, capsys):
    make_run(folder / "z-broken", [4.0, "nan"], seed=3, **{"agent.x": 0.2})
    page = folder / "page.html"
    config = CompareConfig((str(folder),), group_by=("agent.x",), html=str(page), json=True)
    assert compare.main(config) == 0
    printed = capsys.readouterr()
    assert "z-broken: seed 3 has no finite value at 200; the one at 100 counts" in printed.err
    result = json.loads(printed.out)
    assert result["at"] == 200.0 and result["groups"][1]["each"] == [[2.0, 3.0, 4.0, 4.0]]


def test_a_seed_without_a_value_to_compare_is_named(folder):
    config = CompareConfig((str(folder),), group_by=("agent.x",))
    broken = make_run(folder / "y", [[1.0, "nan"]] * 2, seed=3, num_seeds=2, **{"agent.x": 0.2})
    with pytest.raises(UserError, match=r"y: seed 4 has no finite eval/score"):
        compare.main(config)
    shutil.rmtree(broken)
    late = make_run(folder / "y", [0.0] * 4, seed=3, **{"agent.x": 0.2})
    rows = (late / "metrics.jsonl").read_text().splitlines()
    (late / "metrics.jsonl").write_text(rows[-1] + "\n")
    config = CompareConfig(
        (str(folder),), group_by=("agent.x",), ignore=("train.num_epochs",), json=True
    )
    with pytest.raises(UserError, match="y: seed 3 has no finite value up to 200"):
        compare.main(config)


def test_one_run_against_several_has_no_interval(tmp_path, capsys):
    make_run(tmp_path / "a", [1.0])
    for seed in range(3):
        make_run(tmp_path / f"b{seed}", [2.0 + seed], seed=seed, **{"agent.x": 0.1})
    config = CompareConfig((str(tmp_path),), group_by=("agent.x",), json=True)
    change = told(config, capsys)["groups"][1]["difference"]
    assert change["value"] == pytest.approx(2.0) and change["low"] is None


def test_the_page_and_the_table_say_the_same(folder, capsys):
    page = folder / "page.html"
    config = CompareConfig((str(folder),), group_by=("agent.x",), html=str(page))
    assert compare.main(config) == 0
    printed = capsys.readouterr().out
    assert "agent.x=0.2" in printed and "differs: agent.x: 0.1 | 0.2" in printed
    text = page.read_text()
    assert "Learning curves" in text and "differs: agent.x" in text and "data:image/png" in text


def test_a_row_that_is_being_written_does_not_matter(folder, capsys):
    path = folder / "x0.1-s0/metrics.jsonl"
    path.write_text(path.read_text() + '{"epoch": 3, "env_st')
    config = CompareConfig((str(folder),), group_by=("agent.x",), json=True)
    assert told(config, capsys)["at"] == 200.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"its runs differ in agent\.x \(0\.1 or 0\.2\): name the option in --group_by"),
        ({"group_by": ("agent.y",)}, r"has no option agent\.y"),
        (
            {"metric": "eval/lap", "group_by": ("agent.x",)},
            "no row has both eval/lap and env_steps",
        ),
        ({"group_by": ("agent.x",), "task_by": ("seed",)}, ""),
    ],
)
def test_what_cannot_be_averaged_is_refused(folder, changes, message):
    config = CompareConfig((str(folder),), **changes)
    if not message:  # tasks by seed: one run each, allowed
        assert compare.main(config) == 0
        return
    with pytest.raises(UserError, match=message):
        compare.main(config)


def test_a_seed_twice_and_missing_runs_are_refused(folder, tmp_path_factory):
    shutil.copytree(folder / "x0.1-s0", folder / "again")
    with pytest.raises(UserError, match="seed 0 is there twice"):
        compare.main(CompareConfig((str(folder),), group_by=("agent.x",)))
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match="no run is here or below"):
        compare.main(CompareConfig((str(empty),)))
    with pytest.raises(UserError, match="there is no such directory"):
        compare.main(CompareConfig((str(empty / "none"),)))
    with pytest.raises(UserError, match="name runs"):
        compare.main(CompareConfig())


def test_damaged_files_are_named(folder, capsys):
    path = folder / "x0.1-s0/metrics.jsonl"
    path.write_text("no JSON\n" + path.read_text())
    with pytest.raises(UserError, match="line 1 is not a JSON object"):
        compare.main(CompareConfig((str(folder),), group_by=("agent.x",)))
    # A list leaves it out and says so.
    assert runs.main(RunsConfig((str(folder),), json=True)) == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)) == 5 and "line 1 is not a JSON object" in printed.err


def test_tasks_without_as_many_runs_are_refused(folder):
    make_run(folder / "more", [1.0, 2.0], seed=5, **{"agent.x": 0.2})
    config = CompareConfig((str(folder),), task_by=("agent.x",))
    with pytest.raises(UserError, match="its tasks must have as many runs each"):
        make_groups(config, [compare.read_run(path) for path in compare.find_runs(config.runs)])


def test_runs_are_listed_and_filtered(folder, capsys):
    assert runs.main(RunsConfig((str(folder),), filter=("agent.x=0.2",), json=True)) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["seeds"] for row in rows] == [[0], [1], [2]]
    assert {row["state"] for row in rows} == {"finished"} and rows[1]["metric"] == 3.0
    assert runs.main(RunsConfig((str(folder),))) == 0
    assert "tiny_experiment  2026-01-02T03:04  finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="no run has this option"):
        runs.main(RunsConfig((str(folder),), filter=("agent.z=1",)))


def test_a_record_becomes_its_command_again(folder, capsys):
    workdir = folder / "replayed"
    config = RunsConfig(
        replay=str(folder / "x0.2-s1/record.json"), workdir=str(workdir), start=True
    )
    assert runs.main(config) == 0
    printed = capsys.readouterr()
    expected = "./run python -m tests.experiments.tiny_experiment --agent.x=0.2"
    assert printed.out.startswith(expected)
    for line in ("commit: 0000", "jax: 0.1.0 then", "device: abacus then"):
        assert line in printed.err
    before = json.loads((folder / "x0.2-s1/record.json").read_text())["config"]
    after = json.loads((workdir / "record.json").read_text())["config"]
    assert {**before, "workdir": ""} == {**after, "workdir": ""}
    assert np.isfinite(json.loads((workdir / "metrics.jsonl").open().readline())["eval/score"])
    with pytest.raises(UserError, match="a run is there already"):
        runs.main(config)


def test_an_option_that_is_gone_is_told(folder, capsys):
    path = folder / "x0.1-s0/record.json"
    record = json.loads(path.read_text())
    record["config"]["agent"] |= {"momentum": 0.0, "clip": None}
    write_json(path, record)
    assert runs.main(RunsConfig(replay=str(path))) == 0
    assert "option: agent.momentum=0.0 then, gone now" in capsys.readouterr().err
    record["config"]["agent"]["momentum"] = 0.9
    write_json(path, record)
    with pytest.raises(UserError, match=r"no command has its agent\.momentum=0\.9 any more"):
        runs.main(RunsConfig(replay=str(path)))
    record["config"]["agent"]["momentum"] = 0.0
    record["argv"] = ["pytest"]
    write_json(path, record)
    with pytest.raises(UserError, match="names no module"):
        runs.main(RunsConfig(replay=str(path)))


def test_a_run_that_went_on_with_other_options_is_replayed_as_it_ended(folder, capsys):
    path = folder / "x0.1-s0/record.json"
    record = json.loads(path.read_text())
    longer = {**record["config"], "train": {"num_epochs": 5, "sleep": 0.0, "stop_at": 0}}
    # The module of the options, not what was started and led to it.
    record |= {"module": "tests.experiments.tiny_experiment", "argv": ["python", "-m", "nothing"]}
    record["resumes"] = [{"epoch": 2, "config": longer}, {"epoch": 3}]
    write_json(path, record)
    rows = [{"epoch": k, "env_steps": k, "eval/score": 0.0} for k in range(1, 6)]
    (path.parent / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert runs.main(RunsConfig(replay=str(path))) == 0
    command = capsys.readouterr().out
    assert "-m tests.experiments.tiny_experiment " in command and "num_epochs=5" in command
    assert runs.state_of(runs.read_run(path.parent)) == "finished"


def test_pruning_keeps_everything_but_checkpoints_and_empty_runs(folder, capsys):
    done, empty = folder / "x0.1-s0", folder / "x0.1-s1"
    (done / "checkpoints/2").mkdir(parents=True)
    (done / "checkpoints/2/state").write_bytes(b"0" * 1000)
    (empty / "metrics.jsonl").write_text("")
    unfinished = folder / "x0.1-s2"
    (unfinished / "checkpoints").mkdir()
    lines = (unfinished / "metrics.jsonl").read_text().splitlines()
    (unfinished / "metrics.jsonl").write_text(lines[0] + "\n")
    assert runs.main(RunsConfig((str(folder),), prune=True)) == 0
    assert (done / "checkpoints").is_dir() and "would delete" in capsys.readouterr().out
    assert runs.main(RunsConfig((str(folder),), prune=True, yes=True)) == 0
    assert not (done / "checkpoints").exists() and not empty.exists()
    assert (done / "metrics.jsonl").is_file() and (unfinished / "checkpoints").is_dir()


@pytest.mark.parametrize("name", ["archive.jsonl", "cell.json"])
def test_pruning_keeps_what_has_no_epochs_but_something_else(folder, name):
    search = folder / "x0.1-s0"
    (search / "metrics.jsonl").unlink()
    (search / name).write_text("{}")
    assert runs.main(RunsConfig((str(folder),), prune=True, yes=True)) == 0
    assert (search / name).is_file() and (search / "record.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filter": ("agent.x",)}, "filter must hold option=value"),
        ({"yes": True}, "yes goes with --prune"),
        ({"start": True}, "go with --replay"),
        ({"start": True, "replay": "runs/a"}, "start needs --workdir"),
    ],
)
def test_flags_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        RunsConfig(**changes)


def test_places_need_no_flag():
    config = flags.parse(RunsConfig(), ["a", "--prune", "b"], "places")
    assert config.places == ("a", "b") and config.prune
    with pytest.raises(UserError, match="unexpected argument 'a'"):
        flags.parse(tiny_experiment.CONFIG, ["a"])
