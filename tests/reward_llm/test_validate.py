"""Verdicts, the processes that give them, and what nothing in such a process can do."""

import builtins
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl import flags
from core_rl.features import Feature
from projects.reward_llm import validate
from projects.reward_llm.language import REASONS, Refused
from projects.reward_llm.validate import Job, Validator, Verdict
from tests.reward_llm import hostile
from tests.reward_llm.adversarial import CASES, FEATURES, SIMPLE, body, fenced, value
from tests.reward_llm.test_language import mutants

P, S = 'f["progress"]', 'f["speed"]'


@pytest.fixture(scope="module")
def validator():
    with Validator(2, recycle_after=1000) as opened:  # fewer starts, in a test
        yield opened


@pytest.fixture(scope="module")
def prisoner():
    """A validator whose workers run functions of `hostile`, in the limits of every worker."""
    os.environ[hostile.SECRET] = "a key"
    with Validator(1, time_limit=5.0, _selftest=hostile.NAME) as opened:
        yield opened
    del os.environ[hostile.SECRET]


def test_every_reply_of_the_adversarial_set_is_judged_rightly(validator):
    verdicts = validator.judge([Job(c.reply, FEATURES, c.finish_reason) for c in CASES])
    wrong = [
        (case.reason, verdict.reason, verdict.hint, case.reply[:300])
        for case, verdict in zip(CASES, verdicts, strict=True)
        if verdict.reason != case.reason
    ]
    assert not wrong
    for verdict in verdicts:
        assert verdict.accept == (verdict.reason == "accepted")
        assert len(verdict.hint) <= 300 and "\n" not in verdict.hint
        assert str(validate.ROOT) not in verdict.hint
        if verdict.accept:
            assert verdict.program is not None and not verdict.hint and not verdict.stage
        else:
            assert verdict.stage in REASONS[verdict.reason] and verdict.hint


def test_fuzzed_sources_break_no_worker(validator):
    jobs = [Job(fenced(source), FEATURES) for source in mutants(2000, seed=2)]
    outcomes = Counter(verdict.reason for verdict in validator.judge(jobs))
    assert set(outcomes) <= {*REASONS, "accepted"} and sum(outcomes.values()) == 2000
    assert not {"crashed", "timeout", "out_of_memory"} & set(outcomes), outcomes
    # It is no fuzzing if all of them end at the parser.
    assert len(outcomes) > 20 and outcomes["accepted"] > 40, outcomes


def test_hints_say_where_and_how(validator):
    replies = [value(f"1.0 / {S}"), value(f"1e6 * {P}"), value("3.0"), value(f"{P} + jnp.tanh()")]
    non_finite, out_of_range, constant, error = validator.judge(
        [Job(reply, FEATURES) for reply in replies]
    )
    assert "inf at speed=0" in non_finite.hint and 'term "a"' in non_finite.hint
    assert "1e+07" in out_of_range.hint and "10000" in out_of_range.hint
    assert "reads no feature" in constant.hint
    assert error.line == 2 and "jnp.tanh" in error.hint


def test_advice_is_not_fatal(validator):
    rows = {name: [0.5, 1.0, 0.25] for name in FEATURES}
    rows["collision"] = [0.0, 0.0, 0.0]
    reply = body(
        f"a = {P}",
        'crash = -1.0 * f["collision"]',
        f"root = 1e-3 * jnp.sqrt({S})",
        total="2.0 * a + crash",
        terms='{"a": a, "crash": crash, "root": root}',
    )
    (verdict,) = validator.judge([Job(reply, FEATURES, rows=rows)])
    assert verdict.accept
    text = "\n".join(verdict.warnings)
    assert "do not add up" in text
    assert 'term "crash" is constant in all real states' in text
    assert 'term "a" is' in text and "of the magnitude" in text
    assert "gradient" not in text  # root is no part of the total
    fine = body(f"a = {P}", terms='{"a": a}')
    assert validator.judge([Job(fine, FEATURES)])[0].warnings == ()


def test_gradients_are_asked_for_only_where_wanted(validator):
    reply = value(f"jnp.sqrt({S})")  # finite, but infinitely steep at rest
    (verdict,) = validator.judge([Job(reply, FEATURES)])
    assert verdict.accept and "gradient by speed is inf" in verdict.warnings[0]
    with Validator(1, require_grad=True) as strict:
        steep, fine = strict.judge([Job(reply, FEATURES), Job(value(P), FEATURES)])
    assert steep.reason == "non_finite_gradient" and fine.accept


def test_real_states_are_probed(validator):
    reply = value(f"1.0 / ({S} - 50.123)")
    rows = {name: [0.5] for name in FEATURES}
    met = {**rows, "speed": [50.123]}
    without, harmless, fatal = validator.judge(
        [Job(reply, FEATURES), Job(reply, FEATURES, rows=rows), Job(reply, FEATURES, rows=met)]
    )
    assert without.accept and harmless.accept and fatal.reason == "non_finite"


def test_rows_must_fit_the_table(validator):
    with pytest.raises(ValueError, match="lack the feature"):
        validator.judge([Job(value(P), FEATURES, rows={"speed": [1.0]})])
    rows = {name: [0.5] for name in FEATURES}
    with pytest.raises(ValueError, match="finite"):
        validator.judge([Job(value(P), FEATURES, rows={**rows, "speed": [float("nan")]})])
    assert validator.judge([Job(value(P), FEATURES)])[0].accept


def test_probes_are_the_same_every_time_and_reach_all_corners():
    first = validate.probe_rows(FEATURES, None)
    np.testing.assert_array_equal(first, validate.probe_rows(dict(FEATURES), None))
    for i, feature in enumerate(FEATURES.values()):
        column = first[:, i]
        assert column.min() == np.float32(feature.low)
        assert column.max() == np.float32(feature.high)
        assert (column == 0.0).any()
        if feature.kind != "continuous":
            np.testing.assert_array_equal(column, np.rint(column))
    flags = {f"flag_{i}": Feature("0 or 1", 0.0, 1.0, kind="flag") for i in range(8)}
    assert len(np.unique(validate.probe_rows(flags, None), axis=0)) == 2**8
    more = {f"flag_{i}": Feature("0 or 1", 0.0, 1.0, kind="flag") for i in range(40)}
    assert set(np.unique(validate.probe_rows(more, None))) == {0.0, 1.0}
    bounded = {"gap": Feature("m", 2.0, 3.0), "count": Feature("1", 0.5, 3.5, kind="count")}
    rows = validate.probe_rows(bounded, {"gap": [9.0], "count": [7.0]})
    assert rows[:-1, 0].min() == 2.0 and set(np.unique(rows[:-1, 1])) == {1.0, 2.0, 3.0}
    np.testing.assert_array_equal(rows[-1], [9.0, 7.0])


def looped(x):
    return jax.lax.while_loop(lambda y: y < 3.0, lambda y: y + 1.0, x)


def called_back(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), jnp.float32), x)


def drawn(x):
    return x + jax.random.uniform(jax.random.key(0))


def hidden(x):
    return jax.jit(jax.jit(looped))(x)


@pytest.mark.parametrize("function", [looped, called_back, drawn, hidden])
def test_the_audit_knows_what_is_not_arithmetic(function):
    with pytest.raises(Refused) as caught:
        validate.audit(jax.make_jaxpr(function)(1.0))
    assert (caught.value.reason, caught.value.stage) == ("forbidden_primitive", "jaxpr")


def test_the_audit_counts_elements_and_equations():
    table = np.arange(300.0)
    for function in (lambda x: jnp.sum(x * table), lambda x: jnp.sum(jnp.zeros((20, 20)) + x)):
        with pytest.raises(Refused) as caught:
            validate.audit(jax.make_jaxpr(function)(1.0))
        assert (caught.value.reason, caught.value.stage) == ("too_large", "jaxpr")

    def nested(x):
        for _ in range(300):
            x = jnp.where(x > 0.0, x, 1.0)
        return x

    with pytest.raises(Refused, match="operations"):
        validate.audit(jax.make_jaxpr(nested)(1.0))
    validate.audit(jax.make_jaxpr(lambda x: jnp.sum(jnp.zeros(256)) + x)(1.0))


REFUSED_TO_PRISONERS = [
    hostile.change_the_environment,
    hostile.read_parents_environment,
    hostile.read_a_file,
    hostile.read_by_descriptor,
    hostile.write_a_file,
    hostile.create_a_module,
    hostile.make_a_directory,
    hostile.remove_a_file,
    hostile.open_a_socket,
    hostile.resolve_a_name,
    hostile.start_a_process,
    hostile.run_a_shell,
    hostile.fork,
    hostile.replace_itself,
    hostile.kill_the_parent,
    hostile.call_the_system,
    hostile.lift_a_limit,
    hostile.lift_the_time_limit,
    hostile.lift_a_limit_from_outside,
]


@pytest.mark.parametrize("function", REFUSED_TO_PRISONERS)
def test_a_worker_may_not(prisoner, function):
    answer = prisoner._call(function.__name__)
    assert "is refused" in answer["error"] and answer["error"].startswith("PermissionError")


def test_a_worker_knows_no_secret_and_sees_no_file(prisoner):
    known = {*validate._environment(), "LC_CTYPE", "TPU_SKIP_MDS_QUERY"}  # python's and jax's own
    names = set(eval(prisoner._call("environment")["result"]))
    assert "PATH" in names and names <= known
    assert hostile.SECRET in os.environ and hostile.SECRET not in names
    assert prisoner._call("files")["result"] == "[]"


def test_a_worker_has_its_limits(prisoner):
    core, size, files, memory = eval(prisoner._call("limits")["result"])
    assert core == size == (0, 0)
    assert files == (validate.OPEN_FILES,) * 2
    if sys.platform == "linux":
        assert memory == (validate.MEMORY_LIMIT,) * 2


def works(prisoner):
    (verdict,) = prisoner.judge([Job(value(P), FEATURES)])
    return verdict.accept


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
@pytest.mark.parametrize("function", [hostile.allocate, hostile.allocate_in_steps])
def test_a_worker_cannot_take_all_memory(prisoner, function):
    answer = prisoner._call(function.__name__)
    assert isinstance(answer, Verdict) and answer.reason == "out_of_memory"
    assert works(prisoner)


@pytest.mark.parametrize("function", [hostile.run_for_ever, hostile.wait_for_ever])
def test_a_worker_cannot_run_for_ever(prisoner, function):
    answer = prisoner._call(function.__name__)
    assert isinstance(answer, Verdict) and answer.reason == "timeout" and not answer.accept
    assert works(prisoner)


def test_a_worker_without_its_parents_clock_ends_too():
    with Validator(1, time_limit=1.0, _selftest=hostile.NAME) as validator:
        process = validator._all[0].process
        validator.time_limit = 60.0  # this side's; the worker has its own limit by now
        answer = validator._call("run_for_ever")
        assert isinstance(answer, Verdict) and answer.reason == "timeout"
        assert process.returncode == -signal.SIGXCPU


@pytest.mark.parametrize("function", [hostile.leave, hostile.abort])
def test_a_worker_that_ends_costs_one_verdict(prisoner, function):
    answer = prisoner._call(function.__name__)
    assert isinstance(answer, Verdict) and answer.reason == "crashed"
    assert works(prisoner)


def test_what_a_worker_prints_goes_nowhere(prisoner, capfd):
    assert "printed" in prisoner._call("print_something")["result"]
    assert prisoner._call("read_input")["result"] == "''"
    assert prisoner._call("exit_politely")["error"].startswith("SystemExit")
    assert works(prisoner)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("function", [hostile.speak_garbage, hostile.speak_nonsense])
def test_a_worker_that_forges_answers_is_replaced(prisoner, function):
    answer = prisoner._call(function.__name__)
    assert isinstance(answer, Verdict) and answer.reason == "crashed"
    assert works(prisoner)


def test_what_a_worker_breaks_is_its_own(prisoner):
    assert "broken" in prisoner._call("break_what_it_can")["result"]
    assert not hasattr(builtins, "broken")


def answer(**changes):
    finding = validate._Finding(True, source="def reward(f):\n    return (f['speed'], {'a': 1.0})")
    return {**dataclasses.asdict(finding), "warnings": [], "id": 1, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"accept": 1},
        {"reason": "fine"},
        {"reason": "non_finite"},
        {"stage": "ast"},
        {"accept": False, "reason": "nonsense", "stage": "ast"},
        {"accept": False, "reason": "non_finite", "stage": "ast"},
        {"accept": False, "reason": [], "stage": "ast"},
        {"hint": None},
        {"line": "3"},
        {"warnings": "text"},
        {"warnings": [3]},
        {"warnings": ["w"] * 1000},
        {"source": ""},
        {"source": None},
        {"source": "import os"},
        {"source": "def reward(f):\n    return f['speed'], {'a': 1.0}"},  # not canonical
        {"source": "def reward(f):\n    return (open('x'), {'a': 1.0})"},
        {"extra": 1},
    ],
)
def test_only_a_verdict_of_known_shape_is_believed(changes):
    assert validate._verdict(answer(), FEATURES).accept
    verdict = validate._verdict(answer(**changes), FEATURES)
    assert (verdict.accept, verdict.reason, verdict.program) == (False, "crashed", None)


def test_a_worker_killed_over_a_reply_costs_one_verdict(prisoner):
    assert works(prisoner)
    process = prisoner._all[0].process
    threading.Timer(0.5, process.kill).start()  # as the kernel does when memory is short
    answer = prisoner._call("wait_for_ever")
    assert isinstance(answer, Verdict) and answer.reason == "out_of_memory"
    assert works(prisoner) and prisoner._all[0].process is not process


def test_a_worker_that_died_unasked_costs_none():
    with Validator(1) as validator:
        jobs = [Job(value(P), FEATURES)] * 3
        assert validator.judge(jobs)[0].accept
        os.kill(validator._all[0].process.pid, signal.SIGKILL)
        validator._all[0].process.wait()
        # Found dead before it was asked: nobody is to blame.
        assert all(verdict.accept for verdict in validator.judge(jobs))


def test_workers_are_recycled_and_go_when_the_validator_does():
    with Validator(1, recycle_after=2) as validator:
        verdicts, processes = [], set()
        for _ in range(3):
            verdicts += validator.judge([Job(value(P), FEATURES)])
            processes.add(validator._all[0].process)
        assert all(verdict.accept for verdict in verdicts) and len(processes) == 2
        assert len({verdict.program.id for verdict in verdicts}) == 1
    assert all(process.poll() is not None for process in processes)


def command(*arguments, **options):
    line = [sys.executable, "-m", "projects.reward_llm.validate", *arguments]
    return subprocess.run(line, capture_output=True, cwd=validate.ROOT, **options)


@pytest.fixture
def tables(tmp_path):
    path = tmp_path / "features.json"
    content = {name: dataclasses.asdict(feature) for name, feature in FEATURES.items()}
    path.write_text(json.dumps({"racing": content}))
    return f"--features={path}"


def test_the_command_judges_one_reply(tables, tmp_path):
    reply = tmp_path / "reply.txt"
    reply.write_text(value(P))
    done = command(tables, "--task=racing", f"--file={reply}", "--json")
    verdict = json.loads(done.stdout)
    assert done.returncode == 0 and verdict["accept"] and verdict["reason"] == "accepted"
    done = command(tables, "--task=racing", "--file=-", input=b"\xff\xfe" + b"no code \x00")
    assert done.returncode == 1 and done.stdout.startswith(b"refused at extract: no_code")
    assert not done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--task=racing", "--file=/nonexistent/reply"),
        ("--task=tennis", "--file=-"),
        ("--file=-",),
        (),
        ("--responses=/nonexistent/replies",),
        ("--task=racing", "--file=-", "--responses=-"),
    ],
)
def test_a_wrong_command_is_told_so(arguments, tables, capsys):
    with pytest.raises(SystemExit) as caught:
        flags.main(validate.run, validate.Validate(), argv=["validate", tables, *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_command_judges_many_replies_in_order(tables, tmp_path):
    lines = [
        json.dumps({"id": "a", "features": "racing", "response_text": value(P)}),
        "not json",
        json.dumps({"id": 2, "features": "tennis", "response_text": value(P)}),
        json.dumps({"id": 3, "features": "racing"}),
        json.dumps({"id": 4, "features": ["racing"], "response_text": value(P)}),
        json.dumps([1]),
        '{"id": NaN, "features": "racing", "response_text": ""}',
        "[" * 100_000,
        "",
        json.dumps({"id": 5, "features": "racing", "response_text": value(f"1 / {S}")}),
        json.dumps({"features": "racing", "response_text": value(P)}),
        json.dumps(
            {"id": None, "features": "racing", "response_text": SIMPLE, "finish_reason": "length"}
        ),
        json.dumps({"id": "\ud800", "features": "racing", "response_text": "\ud800"}),
    ]
    path = tmp_path / "replies.jsonl"
    path.write_bytes("\n".join(lines).encode() + b'\n{"id": "\xff"}\n')
    done = command(tables, f"--responses={path}")
    assert done.returncode == 0 and not done.stderr
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(verdict["id"], verdict["reason"]) for verdict in verdicts] == [
        ("a", "accepted"),
        (None, "bad_record"),
        (2, "bad_record"),
        (3, "bad_record"),
        (4, "bad_record"),
        (None, "bad_record"),
        (None, "bad_record"),
        (None, "bad_record"),
        (5, "non_finite"),
        (None, "bad_record"),
        (None, "truncated"),
        ("\ud800", "no_code"),
        ("\ufffd", "bad_record"),
    ]
    assert all({"accept", "stage", "hint"} <= set(verdict) for verdict in verdicts)
