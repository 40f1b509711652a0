"""Papers run again: the framework on tiny steps, every paper's table, and the smoke scale."""

import fnmatch
import json
from pathlib import Path

import pytest

from core_rl.errors import UserError
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


def test_the_table_has_ours_beside_theirs_and_says_what_is_missing(folder):
    assert reproduce(tiny_paper(), ReproduceConfig("small", ("tiny/s1",), keep=True)) == 0
    text = markdown(tiny_paper())
    assert "| score | 0.9 | 0.92 points |" in text and "| never run | 7 |  |" in text
    assert reproduce(tiny_paper(), ReproduceConfig("small", keep=True)) == 0
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
