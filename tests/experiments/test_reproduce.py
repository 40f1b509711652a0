"""Papers run again: the framework on tiny steps, every paper's table, and the smoke scale."""

import fnmatch
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core_rl.errors import UserError
from core_rl.tracking import is_held, read_metrics
from experiments.reproduce import all as papers
from experiments.reproduce import paper as framework
from experiments.reproduce.all import PAPERS, AllConfig, html_of, page, paper_of
from experiments.reproduce.paper import Line, Paper, ReproduceConfig, Step, markdown, reproduce

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def tiny(key, seed, *more):
    def read(directory, _):
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
        return {"score": rows[-1]["eval/score"]}

    arguments = (f"--seed={seed}", "--workdir={out}", *more)
    return Step(key, "tests.experiments.tiny_experiment", arguments, read)


def tiny_paper(*more):
    steps = tuple(tiny(f"tiny/s{seed}", seed, *more) for seed in range(3))
    return Paper(
        name="tiny_2026",
        title="Tiny",
        citation="Nobody 2026.",
        source="nowhere.",
        steps={"smoke": steps[:1], "small": steps, "full": ()},
        lines=(
            Line("score", "0.9", "tiny/*", "score", "points"),
            Line("of one", "", "tiny/s1", "score"),
            Line("never run", "7"),
        ),
        deviations=("It learns nothing.",),
        cost="nothing.",
        expected="0.9.",
        full="a larger one.",
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the papers' own folders are."""
    monkeypatch.setattr(framework, "HERE", tmp_path)
    (tmp_path / "tiny_2026").mkdir()
    return tmp_path


def test_steps_are_done_once_and_kept_with_how_they_were_made(folder, capsys):
    config = ReproduceConfig("small", out=str(folder / "out"), keep=True)
    assert reproduce(tiny_paper(), config) == 0
    path = folder / "tiny_2026/results.jsonl"
    rows = [json.loads(line) for line in path.open()]
    assert [row["key"] for row in rows] == ["tiny/s0", "tiny/s1", "tiny/s2"]
    # 1 - (0 - 0.3)^2 + 0.01 per seed.
    assert [row["numbers"]["score"] for row in rows] == pytest.approx([0.91, 0.92, 0.93])
    assert rows[0]["command"].startswith("./run python -m tests.experiments.tiny_experiment --seed")
    assert {"git_sha", "dirty"} <= set(rows[0]["code"]) and rows[0]["machine"]["cores"]
    before = path.read_bytes()
    capsys.readouterr()
    assert reproduce(tiny_paper(), config) == 0
    assert path.read_bytes() == before and capsys.readouterr().err.count("done before") == 3


def test_kept_results_are_those_of_the_runs_and_of_the_same_command(folder, capsys):
    out, kept = str(folder / "out"), folder / "tiny_2026/results.jsonl"
    assert reproduce(tiny_paper(), ReproduceConfig("small", out=out)) == 0
    assert not kept.exists()
    capsys.readouterr()
    assert reproduce(tiny_paper(), ReproduceConfig("small", out=out, keep=True)) == 0
    assert capsys.readouterr().err.count("done before") == 3
    assert kept.read_bytes() == (folder / "out/results.jsonl").read_bytes()
    # Without the runs the kept ones count where they are asked for.
    (folder / "out/results.jsonl").unlink()
    assert reproduce(tiny_paper(), ReproduceConfig("small", out=out, keep=True)) == 0
    assert capsys.readouterr().err.count("done before") == 3
    # A step whose command has changed is another one; the last one counts.
    only = ("tiny/s1",)
    changed = ReproduceConfig("small", only, str(folder / "other"), keep=True)
    assert reproduce(tiny_paper("--agent.x=0.3"), changed) == 0
    assert "done before" not in capsys.readouterr().err
    assert "| of one |  | 1.01 (1 run) |" in markdown(tiny_paper())


def results(folder, *rows):
    told = {"paper": "tiny_2026", "command": "", "date": "2026-01-02", "seconds": 1.0}
    told |= {"code": {"git_sha": "0" * 40, "dirty": False}}
    told |= {"machine": {"cores": 2, "cpu": "abacus"}}
    lines = [
        json.dumps({**told, "scale": scale, "key": key, "numbers": numbers})
        for scale, key, numbers in rows
    ]
    (folder / "tiny_2026/results.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("scores", "cell"),
    [
        ((0.9, "nan", 0.7), "0.9 and 0.7 points (2 of 3 runs; 1 has none)"),
        ((0.9, None, None), "0.9 points (1 of 3 runs; 2 have none)"),
        ((0.9, 0.7), "0.9 and 0.7 points (2 runs)"),
        (("nan",), "none (1 run)"),
        ((0.9, 0.9, 0.9, None), "0.9 points (0.9 to 0.9, 3 of 4 runs; 1 has none)"),
    ],
)
def test_runs_without_a_number_are_told_apart(folder, scores, cell):
    rows = [
        ("small", f"tiny/s{k}", {} if score is None else {"score": score})
        for k, score in enumerate(scores)
    ]
    results(folder, *rows)
    assert f"| score | 0.9 | {cell} |" in markdown(tiny_paper())


def test_it_says_of_which_code_results_are(folder):
    results(folder, ("small", "tiny/s1", {"score": 0.9}))
    path = folder / "tiny_2026/results.jsonl"
    assert "at commit 0000000, on 2 cores, abacus" in markdown(tiny_paper())
    path.write_text(path.read_text().replace('"dirty": false', '"dirty": true'))
    assert "at commit 0000000 with files not committed, on" in markdown(tiny_paper())


def test_the_table_is_of_the_largest_scale(folder):
    small, full = [(scale, "tiny/s1", {"score": x}) for scale, x in (("small", 1), ("full", 2))]
    results(folder, full, small)
    text = markdown(tiny_paper())
    assert "| of one |  | 2 (1 run) |" in text and "Ours: scale full, 1 steps" in text


def test_no_line_mixes_trained_policies_with_the_committed_one():
    for line in paper_of("ace_2026").lines:
        keys = [step.key for step in paper_of("ace_2026").steps["small"]]
        found = fnmatch.filter(keys, line.keys)
        assert "returns/committed" not in found or len(found) == 1


def test_a_signal_ends_the_step_in_order(folder):
    script = f"""if True:
        import sys
        from tests.experiments.test_reproduce import ReproduceConfig, reproduce, tiny_paper
        paper = tiny_paper("--train.sleep=0.2", "--train.num_epochs=1000")
        sys.exit(reproduce(paper, ReproduceConfig("smoke", out={str(folder / "out")!r})))
    """
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    workdir, deadline = folder / "out/tiny-s0", time.monotonic() + 60.0
    while not (workdir / "metrics.jsonl").exists() or not read_metrics(workdir / "metrics.jsonl"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and "the same command goes on" in said, said
    assert not is_held(workdir) and "FAILED" not in said


def test_the_table_has_ours_beside_theirs_and_says_what_is_missing(folder):
    config = ReproduceConfig("small", ("tiny/s1",), str(folder / "out"), keep=True)
    assert reproduce(tiny_paper(), config) == 0
    text = markdown(tiny_paper())
    assert "| score | 0.9 | 0.92 points (1 run) |" in text and "| never run | 7 |  |" in text
    config = ReproduceConfig("small", out=str(folder / "out"), keep=True)
    assert reproduce(tiny_paper(), config) == 0
    text = markdown(tiny_paper())
    assert "| score | 0.9 | 0.92 points (0.91 to 0.93, 3 runs) |" in text
    assert "scale small, 3 steps" in text and "It learns nothing." in text
    assert "<td>0.92 points (0.91 to 0.93, 3 runs)</td>" in html_of(text)


def test_a_failed_step_is_told_and_done_again_next_time(folder, capsys):
    config = ReproduceConfig("smoke", out=str(folder / "out"))
    assert reproduce(tiny_paper("--agent.kind=fails"), config) == 1
    assert "tiny/s0: FAILED: exit code 1:" in capsys.readouterr().err
    assert reproduce(tiny_paper(), config) == 0


def test_numbers_that_cannot_be_read_are_a_failure(folder, capsys):
    broken = tiny_paper()
    step = broken.steps["smoke"][0]._replace(read=lambda directory, stdout: {"x": [][0]})
    broken = broken._replace(steps={"smoke": (step,), "small": (), "full": ()})
    with pytest.raises(IndexError):  # of our own code: it keeps its traceback
        reproduce(broken, ReproduceConfig("smoke", out=str(folder / "out")))
    step = step._replace(read=lambda directory, stdout: {"x": json.loads(stdout or "{}")["y"]})
    broken = broken._replace(steps={"smoke": (step,), "small": (), "full": ()})
    assert reproduce(broken, ReproduceConfig("smoke", out=str(folder / "out2"))) == 1
    assert "its numbers cannot be read: KeyError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ReproduceConfig("small", ("none/*",)), "no such steps; there are tiny/s0, tiny/s1"),
        (ReproduceConfig("full"), "no such steps; there are none: a larger one"),
    ],
)
def test_steps_that_do_not_exist_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        reproduce(tiny_paper(), config)


def test_wrong_flags_are_refused():
    with pytest.raises(ValueError, match="there is no paper 'muzero_2020'; there are gt_sophy"):
        AllConfig(papers=("muzero_2020",))
    with pytest.raises(ValueError, match="keep is not for the smoke scale"):
        ReproduceConfig(keep=True)
    with pytest.raises(ValueError, match="scale must be smoke, small, full"):
        ReproduceConfig("huge")


@pytest.mark.parametrize("name", PAPERS)
def test_every_paper_is_whole(name):
    paper = paper_of(name)
    assert paper.name == name and paper.steps["smoke"] and paper.steps["small"]
    assert paper.deviations and paper.full
    keys = [step.key for step in paper.steps["small"]]
    assert len(set(keys)) == len(keys)
    every = {key for steps in paper.steps.values() for key in (step.key for step in steps)}
    for line in paper.lines:
        assert not line.keys or fnmatch.filter(every, line.keys), line.what
    # As `./run reproduce --pages` writes it.
    assert (paper.folder / "README.md").read_text() == framework.readme(paper)


def test_the_pages_in_docs_are_those_of_the_kept_results():
    assert (ROOT / "docs/reproductions.md").read_text() == page()


@pytest.mark.parametrize("name", PAPERS)
def test_the_smoke_scale_of_every_paper_runs(name, tmp_path):
    assert papers.main(AllConfig(papers=(name,), out=str(tmp_path))) == 0
    rows = [json.loads(line) for line in (tmp_path / name / "results.jsonl").open()]
    assert {row["key"] for row in rows} == {step.key for step in paper_of(name).steps["smoke"]}
    assert all(row["numbers"] for row in rows if not row["key"].startswith("search"))
