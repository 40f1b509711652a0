"""The report of a search, from hand-made events: numbers on planted values, and the page."""

import json
import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from core_rl.reward_task import RewardTask
from core_rl.tracking import encode_json, read_metrics
from core_rl.train import TrainConfig
from projects.reward_llm import report
from projects.reward_llm.judge.preferences import Preference, append_preferences
from projects.reward_llm.report import plain, whole, write_search_report
from projects.reward_llm.results import (
    Budget,
    Summary,
    compare,
    comparisons,
    digits,
    estimate,
    headline,
    interquartile_mean,
    ledger_totals,
    lineage,
    rank_generations,
    summarise,
)
from projects.reward_llm.search.arms import ARMS, FIXED, MODEL_ARMS
from tests.pages import Reader

NAN = math.nan
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} \u202e</pre>"
DOCS = {
    "lap_ratio": "mean time of laps; smaller is better",
    "pace": "distance; larger is better",
    "score": "it chooses",
}
TRAIN = TrainConfig(num_envs=10, steps_per_epoch=5, updates_per_step=2, warmup_steps=3)
BUDGET = Budget(env_steps_per_epoch=50, updates_per_epoch=10, warmup_steps=30)
TASK = cast(
    RewardTask,
    SimpleNamespace(name="toy:lap", metric_docs=DOCS, score="score", train=TRAIN),
)


# Events as the search writes them.


def candidate(key: str, *, accept: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "event": "candidate",
        "operator": "weights",
        "parents": [],
        "accept": accept,
        "reason": "accepted" if accept else "unknown_name",
        "stage": "" if accept else "parse",
        "hint": "" if accept else "there is no feature 'spead'",
        "warnings": [],
        "id": "abc" if accept else None,
        "source": "def reward(f):\n    return f['speed'], {'a': 1.0, 'b': 0.0}" if accept else None,
        "terms": ["a", "b"] if accept else [],
        "factors": [1.0, 2.0] if accept else [],
        **more,
    }


def filtered(path: str, kept: list[int], *, slots: int, hackable=(), twins=None, tac=None) -> dict:
    paid = {str(k): {"good": 10.0, "stand": 11.0 if k in hackable else 1.0} for k in range(slots)}
    return {
        "key": f"{path}/filter",
        "event": "filter",
        "paid": paid,
        "hackable": {str(k): ["stand"] for k in hackable},
        "twins": {str(k): of for k, of in (twins or {}).items()},
        "tac": {str(k): value for k, value in (tac or {}).items()},
        "kept": kept,
    }


def trained(path: str, scores: dict[int, list[float]], *, rung: int = 0, epochs: int = 4) -> dict:
    lanes = [
        {
            "slot": slot,
            "curve": {"lap_ratio": [NAN] * len(values), "pace": values, "score": values},
            "statistics": [
                {
                    "a": {"mean": 1.0, "sd": 0.5, "share": 0.95, "active": 1.0},
                    "b": {"mean": 0.0, "sd": 0.0, "share": 0.05, "active": 0.0},
                }
                for _ in values
            ],
        }
        for slot, values in scores.items()
    ]
    num = len(next(iter(scores.values())))
    checked = [round(epochs * (n + 1) / num) for n in range(num)]
    return {"key": f"{path}/rung{rung}", "event": "trained", "checked": checked, "lanes": lanes}


def judged(path: str, judge: str = "merit", **more: Any) -> dict:
    return {
        "key": f"{path}/judged",
        "event": "judged",
        "judge": judge,
        "void": "",
        "num_pairs": 32,
        "unreadable": 0,
        "consistency": 0.875,
        "first_slot": 0.5,
        "ties": 0.25,
        "known": 2,
        "known_right": 2,
        "repeated": 0,
        **more,
    }


def best(arm: str, seed: int, key: str) -> dict:
    return {"key": f"s{seed}/{arm}/best", "event": "best", "candidate": key, "score": 0.5}


def final(arm: str, seed: int, number: int, score: float, lap: float = NAN, key: str = "") -> dict:
    return {
        "key": f"s{seed}/{arm}/final{number}",
        "event": "final",
        "candidate": key or f"s{seed}/{arm}/g0/c0",
        "number": number,
        "metrics": {"lap_ratio": lap, "pace": score, "score": score},
        "checked": [2, 4],
        "curve": {"lap_ratio": [NAN, lap], "pace": [0.1, score], "score": [0.1, score]},
    }


def whole_search(seeds: int = 3, generations: int = 2, proposals: int = 8) -> list[dict]:
    """All nine arms, as large as the default."""
    random = np.random.default_rng(0)
    body = "\n".join(f"    t{k} = jnp.tanh(f['speed'] / {k + 1}.0)" for k in range(30))
    told = {
        "operator": "mutate",
        "source": f"def reward(f):\n{body}\n    return t0, {{'a': t0, 'b': t1}}",
        "hypothesis": HOSTILE + "It will be fast because speed is paid. " * 18,
        "rounds": [
            {
                "model": HOSTILE,
                "source": "replay",
                "input_tokens": 3000,
                "output_tokens": 800,
                "reason": "accepted",
                "hint": "",
            }
        ],
    }
    events: list[dict] = [{"key": "prompts", "event": "prompts", "design": "5ha" * 20}]
    for seed in range(seeds):
        for arm in ARMS:
            if arm in FIXED:
                events += [candidate(f"s{seed}/{arm}/g0/c0", operator=arm)]
                events += [best(arm, seed, f"s{seed}/{arm}/g0/c0")]
                continue
            for generation in range(generations):
                shared = generation == 0 and arm in MODEL_ARMS
                path = f"s{seed}/{'first' if shared else arm}/g{generation}"
                if shared and any(event["key"].startswith(path) for event in events):
                    continue
                asks = told if arm in MODEL_ARMS else {}
                parents = [f"s{seed}/first/g0/c2"] if asks and not shared else []
                events += [
                    candidate(f"{path}/c{k}", **{"parents": parents, **asks})
                    for k in range(proposals)
                ]
                kept = list(range(6))
                events += [filtered(path, kept, slots=proposals, hackable=[6], twins={7: 0})]
                scores = {k: np.sort(random.random(4)).tolist() for k in kept}
                events += [trained(path, scores), judged(path)]
            events += [best(arm, seed, f"{path}/c1")]
        events += [
            final(arm, seed, number, random.random(), key=f"s{seed}/{arm}/g1/c1")
            for arm in ARMS
            for number in range(2)
        ]
    return events


def write_archive(workdir, events: list[dict], torn: str = "") -> None:
    lines = [json.dumps(encode_json(event)) for event in events]
    (workdir / "archive.jsonl").write_text("".join(f"{line}\n" for line in lines) + torn)


def make(events: list[dict], arms=(), preferences=()) -> Summary:
    return summarise(events, ["score", "lap_ratio", "pace"], "score", BUDGET, arms, preferences)


# Statistics.


def test_estimate_on_planted_values():
    # Searches differ, the finals of each are alike: the interval is that of three searches.
    found = estimate({0: [1.0, 1.0], 1: [2.0, 2.0], 2: [3.0, 3.0]})
    assert found[0] == 2.0 and (found.finite, found.count) == (6, 6)
    assert found.low == 1.0 and found.high == 3.0  # each has the chance 1/27 > 2.5 %
    # The other way round it is narrower, as finals average out over searches.
    inner = estimate({0: [1.0, 3.0], 1: [1.0, 3.0], 2: [1.0, 3.0]})
    assert inner.mean == 2.0 and 1.0 < inner.low < 1.5 and 2.5 < inner.high < 3.0


def test_estimate_covers_the_true_mean():
    random = np.random.default_rng(1)
    hits = 0
    for trial in range(150):
        centres = random.normal(0.0, 1.0, 10)
        values = {k: random.normal(c, 0.5, 3).tolist() for k, c in enumerate(centres)}
        found = estimate(values, seed=trial)
        hits += found.low <= 0.0 <= found.high
    # With ten searches the percentile bootstrap is a little too narrow; with dependence between
    # finals ignored it would cover about 75 %.
    assert 0.85 < hits / 150 <= 0.99


def test_estimate_leaves_out_what_is_no_number_and_counts_it():
    found = estimate({0: [NAN, 2.0], 1: [NAN, 4.0], 2: [NAN, math.inf]})
    assert found.mean == 3.0 and (found.finite, found.count) == (2, 6)
    assert 2.0 <= found.low < found.high <= 4.0
    none = estimate({0: [NAN, NAN]})
    assert math.isnan(none.mean) and math.isnan(none.low) and (none.finite, none.count) == (0, 2)
    one = estimate({0: [5.0]})
    assert one.mean == 5.0 and math.isnan(one.low)  # one number has no interval
    assert estimate({}).count == 0


def test_estimate_takes_searches_of_unequal_length():
    found = estimate({0: [1.0], 1: [2.0, 2.0, 2.0]})
    assert found.mean == pytest.approx(7 / 4) and found.low == 1.0 and found.high == 2.0


def test_compare_pairs_searches():
    # Searches differ much, but the first arm is ahead by 1 in each.
    first = {0: [11.0, 11.0], 1: [1.0, 1.0], 2: [101.0, 101.0]}
    second = {0: [10.0, 10.0], 1: [0.0, 0.0], 2: [100.0, 100.0], 3: [7.0]}
    found = compare(first, second)
    assert found[:3] == pytest.approx((1.0, 1.0, 1.0)) and found.finite == 3
    alone = compare({0: [1.0, 2.0]}, {0: [0.0, 0.0]})
    assert alone.mean == 1.5 and math.isnan(alone.low)
    assert math.isnan(compare({0: [1.0]}, {1: [1.0]}).mean)
    assert math.isnan(compare({0: [1.0]}, {0: [NAN]}).mean)


def test_interquartile_mean():
    assert interquartile_mean([0.0, 1.0, 2.0, 100.0]) == 1.5
    assert interquartile_mean([NAN, 3.0]) == 3.0
    assert interquartile_mean([-50.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 50.0]) == 3.5
    assert math.isnan(interquartile_mean([NAN]))


def test_digits():
    assert [digits(x) for x in (0.62763, 1.58144, 12345.6, 6.653e-6, 0.0, -1507.06)] == (
        ["0.628", "1.58", "12,300", "6.65e-6", "0", "-1,510"]
    )
    assert digits(NAN) == digits(None) == digits(math.inf) == "–"
    assert [whole(n) for n in (0, 9_999, 12_345, 999_900, 245_760, 15_240_000)] == (
        ["0", "9,999", "12.3 k", "1 M", "246 k", "15.2 M"]
    )


# From events to numbers.


def test_what_became_of_candidates():
    path = "s0/cma_es/g0"
    events = [candidate(f"{path}/c{k}") for k in range(5)]
    events += [candidate(f"{path}/c5", accept=False)]
    events += [filtered(path, [0, 3], slots=5, hackable=[1], twins={2: 0}, tac={0: 0.4})]
    events += [trained(path, {0: [0.1, NAN], 3: [NAN, 0.3]})]
    events += [trained(path, {3: [0.2, 0.25]}, rung=1)]
    summary = make(events)
    ones = [summary.candidates[f"{path}/c{k}"] for k in range(6)]
    statuses = ["trained", "hackable", "twin", "trained", "passed over", "refused"]
    assert [one.status for one in ones] == statuses
    assert ones[1].exploiters == ["stand"] and ones[0].tac == 0.4 and ones[3].tac is None
    assert (ones[0].score, ones[3].score, ones[1].score) == (0.1, 0.3, None)
    assert ones[3].updates == [20, 40, 60, 80] and ones[0].updates == [20, 40]
    assert ones[3].curve["score"][1:] == [0.3, 0.2, 0.25]
    cost = summary.arms["cma_es"].cost
    assert (cost.proposed, cost.accepted, cost.hackable, cost.twins, cost.trained) == (
        (6, 5, 1, 1, 2)
    )
    assert cost.updates == 40 + 80 and cost.env_steps == 12 * 50 + 2 * 30


def test_a_score_that_never_is_a_number_is_the_worst():
    path = "s0/cma_es/g0"
    events = [candidate(f"{path}/c0"), filtered(path, [0], slots=1)]
    summary = make([*events, trained(path, {0: [NAN, NAN]})])
    assert summary.candidates[f"{path}/c0"].score == -math.inf


def test_arms_without_results_say_why():
    path = "s0/random_programs/g0"
    events = [
        candidate("s0/human/g0/c0"),
        best("human", 0, "s0/human/g0/c0"),
        *[candidate(f"s0/random_weights/g0/c{k}", accept=False) for k in range(2)],
        candidate("s0/cma_es/g0/c0"),
        candidate(f"{path}/c0"),
        filtered(path, [], slots=1, hackable=[0]),
    ]
    arms = make(events, arms=("sparse", "model")).arms
    assert list(arms) == ["human", "sparse", "random_weights", "cma_es", "random_programs", "model"]
    assert {name: arm.reason for name, arm in arms.items()} == {
        "human": "its finals are not trained yet",
        "sparse": "not begun",
        "random_weights": "nothing trained: no candidate was accepted",
        "cma_es": "nothing trained yet",
        "random_programs": "nothing trained: every candidate was refused, hackable or a twin",
        "model": "no replies recorded",
    }
    assert all(arm.metrics["score"].count == 0 and math.isnan(arm.iqm) for arm in arms.values())


def test_model_arms_share_their_first_generation():
    rounds = [{"input_tokens": 100, "output_tokens": 10}, {"error": "timeout"}]
    path = "s0/first/g0"
    events = [candidate(f"{path}/c0", rounds=rounds), filtered(path, [0], slots=1)]
    events += [trained(path, {0: [0.1, 0.2]})]
    events += [candidate("s0/model/g1/c0", parents=[f"{path}/c0"], rounds=rounds[:1])]
    summary = make(events, arms=("model", "model_blind"))
    model, blind = summary.arms["model"], summary.arms["model_blind"]
    assert (model.cost.proposed, blind.cost.proposed, summary.cost.proposed) == (2, 1, 2)
    assert (model.cost.requests, model.cost.input_tokens, blind.cost.output_tokens) == (3, 200, 10)
    assert summary.cost.input_tokens == 200 and blind.cost.env_steps == model.cost.env_steps == 230
    assert blind.reason.startswith("only the shared first generation")
    assert list(make(events).arms) == ["model"]  # the others are shown where they were asked for
    assert list(make(events[:1]).arms) == list(MODEL_ARMS)


def test_finals_of_an_arm():
    scores = [(0, 0, 0.1, NAN), (0, 1, 0.3, 1.5), (1, 0, 0.5, NAN), (1, 1, 0.7, 1.7)]
    summary = make([final("cma_es", *each) for each in scores])
    arm = summary.arms["cma_es"]
    assert arm.metrics["score"].mean == pytest.approx(0.4) and arm.iqm == pytest.approx(0.4)
    lap = arm.metrics["lap_ratio"]
    assert (lap.mean, lap.finite, lap.count) == (1.6, 2, 4)
    assert arm.cost.final_env_steps == 4 * (4 * 50 + 30)


def test_headline():
    assert headline(make([])) == "No result yet: nothing is recorded."
    path = "s0/cma_es/g0"
    search = [candidate(f"{path}/c0"), filtered(path, [0], slots=1)]
    assert "none trained" in headline(make(search))
    assert "no result" in headline(make([*search, trained(path, {0: [0.1, 0.2]})]))
    finals = [final("cma_es", s, n, 0.5 + 0.01 * n) for s in range(3) for n in range(2)]
    worse = [final("human", s, n, 0.1) for s in range(3) for n in range(2)]
    said = headline(make(finals + worse))
    assert said.startswith("cma_es has the highest mean score, 0.505")
    assert "6 finals of 3 searches" in said and "ahead of human by 0.405" in said
    alike = [final("human", s, n, 0.5 + 0.05 * (s - 1)) for s in range(3) for n in range(2)]
    assert "cannot be told apart from human" in headline(make(finals + alike))
    # One search says nothing about others, however far apart they are.
    assert "cannot be told apart" in headline(make(finals[:2] + worse[:2]))
    assert headline(make(finals), expected=8).startswith("So far, ")


def test_a_model_that_does_not_beat_optimisation_is_told_so():
    optimised = [final("cma_es", s, n, 0.5) for s in range(3) for n in range(2)]
    model = [final("model", s, n, 0.5 + 0.1 * (s - 1)) for s in range(3) for n in range(2)]
    found = comparisons(make(optimised + model))
    assert len(found) == 1 and "model does not beat cma_es" in found[0].verdict
    better = [final("model", s, n, 0.7) for s in range(3) for n in range(2)]
    assert comparisons(make(optimised + better))[0].verdict == "model beats cma_es"
    (worse,) = comparisons(make([final("cma_es", s, 0, 0.9) for s in range(3)] + better))
    assert worse.verdict == "model is worse than cma_es" and worse.gap.mean == pytest.approx(-0.2)
    one = comparisons(make(optimised[:2] + better[:2]))
    assert one[0].verdict.startswith("open")


def test_ranks_within_a_generation_and_judge():
    path = "s0/cma_es/g0"
    candidates = make([candidate(f"{path}/c{k}") for k in range(3)]).candidates
    clips = [f"s0-cma_es-g0-c{k}-e{e}" for k in range(3) for e in range(2)]
    preferences = [
        Preference(clips[2 * i + e], clips[2 * j + e], "first", judge)
        for i, j in ((0, 1), (1, 2), (0, 2))
        for e in range(2)
        for judge in ("merit", "person")
    ]
    preferences += [Preference(clips[0], "s1-sparse-g0-c0-e0", "second", "merit")]
    ranks = rank_generations(candidates.values(), preferences)
    assert [ranks[f"{path}/c{k}"][0].rank for k in range(3)] == [1.0, 2.0, 3.0]
    assert [rank.judge for rank in ranks[f"{path}/c0"]] == ["merit", "person"]
    assert ranks[f"{path}/c0"][0].of == 3 and ranks[f"{path}/c0"][0].comparisons == 4


def test_ranks_of_a_model_and_of_the_rule_stay_apart():
    path = "s0/cma_es/g0"
    candidates = make([candidate(f"{path}/c{k}") for k in range(2)]).candidates
    clips = [f"s0-cma_es-g0-c{k}-e0" for k in range(2)]
    answers: dict[str, Any] = {"merit": "first", "llm:some model": "second"}
    preferences = [Preference(clips[0], clips[1], answers[judge], judge) for judge in answers]
    found = rank_generations(candidates.values(), preferences)[f"{path}/c0"]
    assert {one.judge: one.rank for one in found} == {"merit": 1.0, "llm:some model": 2.0}


def test_how_judges_behaved():
    path = "s0/cma_es/g0"
    events = [candidate(f"{path}/c0"), judged(path), judged("s0/model/g1", "llm:x", void="1 of 2")]
    events += [{"key": "s1/model/g1/judged", "event": "judged", "judge": "merit"}]
    found = make(events).judgings
    assert list(found) == [path, "s0/model/g1", "s1/model/g1"]
    assert (found[path].num_pairs, found[path].consistency, found[path].void) == (32, 0.875, "")
    assert found["s0/model/g1"].void == "1 of 2" and math.isnan(found["s1/model/g1"].consistency)


def test_training_of_finals_and_of_the_search():
    path = "s0/cma_es/g0"
    search = [candidate(f"{path}/c{k}") for k in range(2)]
    search += [trained(path, {0: [0.1, 0.2], 1: [0.1, 0.3]}), trained(path, {1: [0.4]}, rung=1)]
    summary = make([*search, final("cma_es", 0, 0, 0.5)])
    assert (summary.final_updates, summary.search_updates) == ([40], 80)
    assert make([final("human", 0, 0, 0.5)]).search_updates == 0
    assert make(search).final_updates == []


def test_lineage():
    events = [candidate("s0/first/g0/c0"), candidate("s0/first/g0/c1")]
    events += [candidate("s0/model/g1/c0", parents=["s0/first/g0/c0", "s0/first/g0/c1"])]
    events += [candidate("s0/model/g2/c0", parents=["s0/model/g1/c0", "s0/first/g0/c1", "lost"])]
    assert lineage("s0/model/g2/c0", make(events).candidates) == [
        (0, "s0/model/g2/c0"),
        (1, "s0/model/g1/c0"),
        (2, "s0/first/g0/c0"),
        (2, "s0/first/g0/c1"),
        (1, "lost"),
    ]


def test_ledger_counts_what_was_never_settled():
    row = {"requests": 1, "input_tokens": 100, "output_tokens": 1000}
    rows = [{"event": "reserve", "number": 0, **row}, {"event": "reserve", "number": 1, **row}]
    rows += [{"event": "settle", "number": 0, **row, "output_tokens": 7}]
    assert ledger_totals(rows) == {
        "requests": 2,
        "input_tokens": 200,
        "output_tokens": 1007,
        "unsettled": 1,
    }


def test_arms_of_resumes_are_asked_for_too():
    record = {
        "config": {"search": {"arms": ["model"], "seeds": 3, "finals": 2, "proposals": 8}},
        "argv": ["python", "-m", "x", "--search.arms=model"],
        "resumes": [{"argv": ["x", "--search.arms=human,cma_es", "--search.seeds", "5"]}],
    }
    asked = report.asked_for(record)
    assert asked["arms"] == ["human", "cma_es", "model"]
    assert (asked["seeds"], asked["finals"]) == (5, 2)


# The page.


def test_page_of_a_whole_search(tmp_path):
    write_archive(tmp_path, whole_search())
    clips = [f"s0-cma_es-g0-c{k}-e0" for k in range(6)]
    append_preferences(
        tmp_path / "preferences.jsonl",
        [Preference(clips[k], clips[k + 1], "first", "merit", why=HOSTILE) for k in range(5)],
    )
    path = write_search_report(tmp_path, TASK)
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html" and len(page.encode()) < 3_000_000
    reader = Reader(page)
    assert len(set(reader.ids)) == len(reader.ids)
    # Self-contained, and what a model wrote is text.
    assert not reader.tags & {"script", "img", "iframe", "link", "object", "embed", "form"}
    for _, name, value in reader.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "action", "formaction")
        assert name not in ("href", "xlink:href") or value.startswith("#")
    assert "{{ 7*7 }}" in reader.text and "\u202e" not in page and "url(http" not in page
    assert "default-src 'none'" in page
    targets = {value[1:] for _, name, value in reader.attributes if name.endswith("href")}
    assert targets <= set(reader.ids)
    assert "nobody looked" in reader.text and "rank" in reader.text
    assert "drowns the others" in reader.text and "stand" in reader.text
    assert all(arm in reader.text for arm in ARMS)
    assert "none in 6 of 6" in reader.text  # no final has a lap


def test_page_tells_how_a_generation_was_judged(tmp_path):
    path = "s0/cma_es/g0"
    events = [candidate(f"{path}/c0"), trained(path, {0: [0.1, 0.2]})]

    def text_with(event: dict) -> str:
        write_archive(tmp_path, [*events, event])
        return Reader(write_search_report(tmp_path, TASK).read_text(encoding="utf-8")).text

    rule = text_with(judged(path))
    assert "merit: 32 pairs, of 2 of which the answer is known (2 right); the same" in rule
    assert "in both orders in 87.5 %" in rule
    assert "nobody looked" in rule and "void:" not in rule
    why = f"1 of 2 known answers were right {HOSTILE}"
    model = text_with(judged(path, f"llm:{HOSTILE}", unreadable=3, known_right=1, void=why))
    assert f"judge llm:{plain(HOSTILE)}: 32 pairs" in model
    assert "(1 right), 3 unreadable; the same" in model
    assert f"void: {plain(why)}" in model and "nobody looked" not in model


def test_page_tells_how_long_finals_were_trained(tmp_path):
    path = "s0/cma_es/g0"
    search = [candidate(f"{path}/c0"), trained(path, {0: [0.1, 0.2]}, epochs=2)]

    def text_with(events: list[dict]) -> str:
        write_archive(tmp_path, events)
        return Reader(write_search_report(tmp_path, TASK).read_text(encoding="utf-8")).text

    longer = text_with([*search, final("cma_es", 0, 0, 0.5)])
    assert "A final was trained for 40 updates, a candidate in its search for 20: " in longer
    last = final("cma_es", 0, 1, 0.5) | {"checked": [1, 2]}
    assert "for 20 updates, a candidate in its search for 20." in text_with([*search, last])
    both = text_with([*search, final("cma_es", 0, 0, 0.5), last])
    assert "trained for 20 or 40 updates" in both
    assert "trained for 40 updates." in text_with([final("human", 0, 0, 0.5)])
    assert "final was trained" not in text_with(search)


def test_results_for_scripts(tmp_path):
    write_archive(tmp_path, [final("cma_es", 0, n, 0.2 + 0.2 * n) for n in range(2)])
    write_search_report(tmp_path, TASK)
    found = json.loads((tmp_path / "results.json").read_text())
    arm = found["arms"]["cma_es"]
    assert found["task"] == "toy:lap" and arm["metrics"]["score"]["mean"] == pytest.approx(0.3)
    assert arm["metrics"]["lap_ratio"] == {
        "mean": "nan",
        "low": "nan",
        "high": "nan",
        "finite": 0,
        "count": 2,
    }
    assert [each["metrics"]["score"] for each in arm["finals"]] == pytest.approx([0.2, 0.4])
    first = (tmp_path / "report.html").read_bytes(), (tmp_path / "results.json").read_bytes()
    write_search_report(tmp_path, TASK)
    again = (tmp_path / "report.html").read_bytes(), (tmp_path / "results.json").read_bytes()
    assert first == again


def test_page_of_an_archive_cut_anywhere(tmp_path):
    events = whole_search(seeds=1, proposals=8)
    for length in (0, 1, 2, 3, 4, 5, 8, 12, 13, 14, 15, 23, len(events) - 5, len(events) - 1):
        write_archive(tmp_path, events[:length], torn='{"key": "s0/mod')
        Reader(write_search_report(tmp_path, TASK).read_text(encoding="utf-8"))


def test_numbers_of_an_archive_cut_anywhere():
    events = whole_search(seeds=1)
    for length in range(len(events) + 1):
        summary = make(events[:length])
        assert headline(summary)
        for arm in summary.arms.values():
            assert bool(arm.finals) == (arm.reason == "")


def test_page_of_nothing(tmp_path):
    page = write_search_report(tmp_path, TASK).read_text(encoding="utf-8")
    reader = Reader(page)
    assert "nothing is recorded" in reader.text and "This search left no record." in reader.text


def test_what_cannot_be_read_is_said_and_stops_nothing(tmp_path):
    write_archive(tmp_path, whole_search(seeds=1)[:30])
    (tmp_path / "preferences.jsonl").write_text('{"first": 1}\n')
    (tmp_path / "ledger.jsonl").write_text('{"event": "reserve"}\n')
    text = Reader(write_search_report(tmp_path, TASK).read_text(encoding="utf-8")).text
    assert "preferences cannot be read" in text and "ledger.jsonl cannot be read" in text


def test_a_page_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    write_archive(tmp_path, whole_search(seeds=1)[:30])
    before = write_search_report(tmp_path, TASK).read_bytes()

    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(report, "draw_dots", fail)
    with pytest.raises(RuntimeError):
        write_search_report(tmp_path, TASK)
    assert (tmp_path / "report.html").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == (
        ["archive.jsonl", "finals.png", "report.html", "results.json"]
    )


def test_the_archive_is_only_read(tmp_path):
    write_archive(tmp_path, whole_search(seeds=1)[:10], torn='{"key": "s0/')
    before = (tmp_path / "archive.jsonl").read_bytes()
    write_search_report(tmp_path, TASK)
    assert (tmp_path / "archive.jsonl").read_bytes() == before
    assert len(read_metrics(tmp_path / "archive.jsonl")) == 10


def test_plain_text_of_a_model():
    assert plain("a\u202eb\x00c\nd\te") == "a\ufffdb\ufffdc\nd    e"
    assert plain("x" * 7000).endswith("(1000 more characters)")
