"""Clips and preferences on the disk: round trips, kills, and what is refused."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core_rl.errors import UserError
from projects.reward_llm.judge import preferences
from projects.reward_llm.judge.preferences import (
    Clip,
    JudgeError,
    Preference,
    PreferenceLog,
    append_preferences,
    draw_pairs,
    hold_out,
    label_arrays,
    load_clips,
    plain_png,
    read_preferences,
    save_clips,
    stack_features,
)


def png(colour=(200, 30, 30), **comments):
    info, file = PngInfo(), io.BytesIO()
    for name, text in comments.items():
        info.add_text(name, text)
    Image.new("RGB", (6, 4), colour).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def clip(name, policy="p", start="s", length=5, **kwargs):
    features = {"speed": np.linspace(0, 1, length), "gear/now": np.arange(length) % 2}
    return Clip(name, f"summary of {name}", None, features, policy, start, **kwargs)


def test_preferences_are_appended_and_read_back(tmp_path):
    path = tmp_path / "preferences.jsonl"
    assert read_preferences(path) == []
    first = [Preference("a", "b", "first", "person", "späte <b>Bremse\n", "second", "2026-01-01")]
    more = [Preference("b", "a", "tie", "rule"), Preference("a", "c", "skip", "person")]
    append_preferences(path, first)
    append_preferences(path, more)
    assert read_preferences(path) == first + more


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_last_line_is_left_out_and_then_replaced(tmp_path, cut):
    path = tmp_path / "preferences.jsonl"
    rows = [Preference("a", "b", "first", "person"), Preference("a", "c", "tie", "person")]
    append_preferences(path, rows)
    path.write_bytes(path.read_bytes()[: -1 - cut])
    assert read_preferences(path) == rows[:1]
    append_preferences(path, rows[1:])
    assert read_preferences(path) == rows


def test_a_withdrawal_takes_the_last_answer_of_that_judge_about_that_pair(tmp_path):
    path = tmp_path / "preferences.jsonl"
    old, other = Preference("a", "b", "first", "me"), Preference("a", "b", "second", "you")
    new = Preference("b", "a", "first", "me")
    log = PreferenceLog(path)
    for each in (old, new, other):
        log.append(each)
    log.withdraw(old)  # names the pair and the judge; their latest is `new`
    log.close()
    assert read_preferences(path) == [old, other]
    assert len(path.read_text().splitlines()) == 4  # nothing is erased


@pytest.mark.parametrize(
    "line,words",
    [
        ("{", "line 2"),
        ('{"first": "a"}', "line 2"),
        ('{"first": "a", "second": "b", "answer": "left", "judge": "x"}', "line 2: answer 'left'"),
        ('{"first": "a", "second": "a", "answer": "tie", "judge": "x"}', "line 2: clip 'a'"),
        ('{"first": "a", "second": "b", "answer": ["tie"], "judge": "x"}', "line 2: answer"),
        ('{"first": 1, "second": "b", "answer": "tie", "judge": "x"}', "line 2: first"),
    ],
)
def test_lines_that_are_no_preference_are_named(tmp_path, line, words):
    path = tmp_path / "preferences.jsonl"
    good = json.dumps({"first": "a", "second": "b", "answer": "tie", "judge": "x"})
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(UserError, match=re.escape(words)):
        read_preferences(path)


def test_labels_follow_the_order_of_the_ids():
    rows = [
        Preference("a", "b", "first", "x"),
        Preference("c", "a", "second", "x"),
        Preference("a", "c", "skip", "x"),
        Preference("b", "c", "tie", "x"),
    ]
    pairs, labels = label_arrays(rows, ["c", "b", "a"])
    np.testing.assert_array_equal(pairs, [[2, 1], [0, 2], [1, 0]])
    np.testing.assert_array_equal(labels, [1, -1, 0])
    assert label_arrays([], ["a"])[0].shape == (0, 2)
    with pytest.raises(JudgeError, match="'b'"):
        label_arrays(rows, ["a", "c"])
    assert rows[1].pair == ("a", "c")
    assert (rows[1].answer_for("c"), rows[1].answer_for("a")) == ("second", "first")


def test_held_out_pairs_stay_held_out():
    rows = [Preference(f"a{k}", f"b{k}", "tie", "x") for k in range(300)]
    kept, held = hold_out(rows, 0.3, 0)
    assert len(kept) + len(held) == 300
    assert len(held) / 300 == pytest.approx(0.3, abs=0.11)  # sd 0.026
    turned = [Preference(p.second, p.first, "first", "y") for p in rows[::-1]]
    both = hold_out([*rows, *turned], 0.3, 0)
    assert [p for p in both[1] if p.judge == "x"] == held  # the file has grown
    assert {p.pair for p in both[1]} == {p.pair for p in held}  # other judges, the same pairs
    assert hold_out(rows, 0.3, 1)[1] != held


def test_clips_come_back_as_they_were(tmp_path):
    picture = png(Title="by candidate g1c3")
    saved = [
        clip("a.1", policy="cand/7"),
        Clip("b", "", picture, {"x": np.float32([1, np.nan])}, "q"),
        Clip("c", "no features\n<b>", None, {}, "q"),
    ]
    save_clips(tmp_path / "clips", saved)
    loaded = load_clips(tmp_path / "clips")
    assert list(loaded) == ["a.1", "b", "c"]
    for each in saved:
        back = loaded[each.id]
        assert (back.text, back.policy, back.start) == (each.text, each.policy, each.start)
        assert back.picture == each.picture
        assert list(back.features) == list(each.features)
        for name, values in each.features.items():
            np.testing.assert_array_equal(back.features[name], values)
            assert back.features[name].dtype == values.dtype


def test_a_kill_between_the_two_files_is_noticed(tmp_path, monkeypatch):
    save_clips(tmp_path, [clip("a", length=5)])

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(preferences, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        save_clips(tmp_path, [clip("b")])
    assert list(load_clips(tmp_path)) == ["a"]  # b is not there yet
    with pytest.raises(KeyboardInterrupt):
        save_clips(tmp_path, [clip("a", length=9)])
    with pytest.raises(JudgeError, match="does not belong"):  # never features of another clip
        load_clips(tmp_path)


def test_what_is_no_clip_is_refused(tmp_path):
    for name in ("", "../a", "a/b", ".a", "a" * 101, "a\n"):
        with pytest.raises(JudgeError, match="an id"):
            clip(name)
    with pytest.raises(JudgeError, match="one T"):
        Clip("a", "", None, {"x": np.zeros(3), "y": np.zeros(4)}, "p")
    with pytest.raises(JudgeError, match="PNG"):
        Clip("a", "", b"<svg>", {}, "p")
    with pytest.raises(JudgeError, match="not a directory"):
        load_clips(tmp_path / "missing")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(JudgeError, match=r"a\.json"):
        load_clips(tmp_path)


def test_features_stack_only_where_clips_are_alike():
    stacked = stack_features([clip("a"), clip("b")])
    assert {name: values.shape for name, values in stacked.items()} == {
        "speed": (2, 5),
        "gear/now": (2, 5),
    }
    with pytest.raises(JudgeError, match="b has 6"):
        stack_features([clip("a"), clip("b", length=6)])
    with pytest.raises(JudgeError, match="gear"):
        stack_features([clip("a"), Clip("b", "", None, {"speed": np.zeros(5)}, "p")])
    with pytest.raises(JudgeError, match="no clips"):
        stack_features([])


def test_drawn_pairs_share_a_start_and_differ_in_policy():
    clips = [
        clip(f"{policy}-{start}-{k}", policy, start)
        for policy in "ABC"
        for start in ("s", "t")
        for k in range(2)
    ]
    by_id = {each.id: each for each in clips}
    pairs = draw_pairs(clips, 1000, 0)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == 3 * 2 * 4
    policies = []
    for first, second in pairs:
        assert by_id[first].start == by_id[second].start
        policies.append(frozenset((by_id[first].policy, by_id[second].policy)))
    for k in range(0, len(pairs), 3):  # whoever stops early has compared all about equally
        assert len(set(policies[k : k + 3])) == 3 and min(map(len, policies)) == 2
    assert draw_pairs(clips, 5, 0) == pairs[:5] != draw_pairs(clips, 5, 1)


def test_pictures_lose_their_comments_only():
    picture = png(Title="candidate g1c3", Author="reward 12.5")
    plain = plain_png(picture)
    assert b"g1c3" in picture and b"g1c3" not in plain and b"12.5" not in plain
    before, after = (np.asarray(Image.open(io.BytesIO(data))) for data in (picture, plain))
    np.testing.assert_array_equal(before, after)
    assert plain_png(plain) == plain
    with pytest.raises(JudgeError, match="truncated"):
        plain_png(picture[:-3])
