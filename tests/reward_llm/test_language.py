"""The reward language: what is taken, what is refused and why, and what it computes."""

import ast
import random
import re
import string
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.reward_llm import language
from projects.reward_llm.language import Refused, check, describe, evaluate, extract
from tests.reward_llm.adversarial import ACCEPTED, CASES, FEATURES, REFUSED, SIMPLE, fenced

# Found by the child only: it takes a trace, a probe, or a worker that is lost.
AFTER_CHECK = {
    reason
    for reason, stages in language.REASONS.items()
    if not {"extract", "parse", "ast"} & set(stages)
}


def refusal(source, names=FEATURES):
    with pytest.raises(Refused) as caught:
        check(source, names)
    return caught.value


def reward(expression, name="a"):
    return f'def reward(f):\n    a = {expression}\n    return a, {{"{name}": a}}\n'


def states(count=64):
    """Random states [N] by name, within the ranges."""
    generator = np.random.default_rng(0)
    return {
        name: jnp.asarray(generator.uniform(entry.low, entry.high, count), jnp.float32)
        for name, entry in FEATURES.items()
    }


@pytest.mark.parametrize("reply", ACCEPTED)
def test_a_program_computes_what_python_does(reply):
    program = check(extract(reply), FEATURES)
    scope = {"jnp": jnp}
    exec(program.source, scope)  # our own text, in a test
    expected = jax.vmap(lambda row: _floats(scope["reward"](row)))(states())
    total, terms = jax.vmap(lambda row: evaluate(program, row))(states())
    assert set(terms) == set(program.terms)  # jax sorts them
    _, terms_in_order = evaluate(program, {name: column[0] for name, column in states().items()})
    assert tuple(terms_in_order) == program.terms
    np.testing.assert_allclose(total, expected[0], rtol=1e-6, atol=1e-6)
    for name, term in terms.items():
        assert term.dtype == jnp.float32
        np.testing.assert_allclose(term, expected[1][name], rtol=1e-6, atol=1e-6)


def _floats(result):
    return jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), result)


@pytest.mark.parametrize("name", language.FUNCTION_NAMES)
def test_every_function_of_the_list_is_the_one_of_jnp(name):
    x, y = 0.3, 0.7
    for arguments in ("x", "x, y", "x > y", "x > y, x, y", "jnp.array([x, y])", "2", "2, x"):
        if name == "power" and arguments.endswith("y"):
            arguments = "x, 3"
        source = (
            f'def reward(f):\n    x = f["x"]\n    y = f["y"]\n    a = jnp.{name}({arguments})\n'
        )
        source += '    return jnp.sum(jnp.asarray(a, dtype=jnp.float32)), {"a": x}\n'
        try:
            scope = {"jnp": jnp}
            exec(source, scope)
            expected = scope["reward"]({"x": jnp.float32(x), "y": jnp.float32(y)})[0]
        except (TypeError, ValueError):  # not what this function takes
            continue
        program = check(source, ["x", "y"])
        total, _ = evaluate(program, {"x": jnp.float32(x), "y": jnp.float32(y)})
        np.testing.assert_allclose(total, expected, rtol=1e-6)
        return
    pytest.fail(f"jnp.{name} was never called")


def test_a_term_has_the_line_and_type_of_its_fault():
    refused = refusal(reward('f["progres"] + 1'))
    assert (refused.reason, refused.stage, refused.line) == ("unknown_feature", "ast", 2)
    assert '"progres"' in refused.hint and "progress" in refused.hint and "line 2" in refused.hint
    assert len(refused.hint.split("closest: ")[1].split(", ")) == 3
    assert "jnp.where" in refusal(reward('1 if f["speed"] > 1 else 2')).hint
    assert "jnp.minimum" in refusal(reward("min(1, 2)")).hint
    assert "jnp.where(condition, 1.0, 0.0)" in refusal(reward('(f["speed"] > 1).astype(1)')).hint
    assert "&" in refusal(reward('f["speed"] > 1 and 1')).hint


@pytest.mark.parametrize("case", [case for case in CASES if case.reason not in AFTER_CHECK])
def test_a_reply_is_refused_for_its_reason_before_anything_is_traced(case):
    try:
        check(extract(case.reply, case.finish_reason), FEATURES)
        reason = "accepted"
    except Refused as refused:
        reason = refused.reason
        assert refused.stage in language.REASONS[reason]
        assert refused.hint and len(refused.hint) <= 300
        assert re.fullmatch("[ -~]+", refused.hint)
    if case.reason == "too_large" and reason == "accepted":  # the audit's, of the child
        assert "jnp" in case.reply or "a = a + a" in case.reply
    else:
        assert reason == case.reason


def test_the_adversarial_set_has_every_reason_that_a_reply_can_get():
    # The others need a lost worker, an option, or a fault of ours; test_validate has them.
    unreachable = {
        "forbidden_primitive",
        "non_finite_gradient",
        "timeout",
        "out_of_memory",
        "crashed",
        "bad_record",
    }
    assert set(REFUSED) == set(language.REASONS) - unreachable
    assert len(CASES) >= 120 and Counter(case.reason for case in CASES)["accepted"] >= 40


@pytest.mark.parametrize("reply", ACCEPTED)
def test_the_canonical_source_is_its_own_canonical_form(reply):
    program = check(extract(reply), FEATURES)
    assert check(program.source, FEATURES) == program
    (function,) = ast.parse(program.source).body
    _, tree = language.check_tree(extract(reply), FEATURES)
    assert ast.dump(function) == ast.dump(tree)


def test_what_has_no_meaning_does_not_change_the_id():
    plain = check(SIMPLE, FEATURES)
    dressed = 'import jax.numpy as jnp\n\n"""x"""\n\n' + SIMPLE.replace(
        "(f):\n",
        '(f: dict)   -> "tuple":\n    # why\n    """Doc."""\n    import jax.numpy as jnp\n',
    ).replace("a = f", "a: float = (f").replace("]\n", "])\n", 1).replace("\n", "\r\n")
    dressed = dressed.replace('"""x"""', "")
    assert check(dressed, FEATURES) == plain
    assert check(SIMPLE.replace("progress", "speed"), FEATURES).id != plain.id
    # A value, so that another machine or version cannot silently give another.
    assert plain.id == "2d09a749e602"
    assert plain.source == "def reward(f):\n    a = f['progress']\n    return (a, {'a': a})"


def test_the_second_of_two_blocks_is_taken_if_only_it_defines_reward():
    assert extract(fenced("x = 1") + fenced(SIMPLE)) == SIMPLE
    assert extract(fenced(SIMPLE) + fenced("reward(f)")) == SIMPLE


def test_thoughts_are_dropped_whole():
    other = fenced(SIMPLE.replace("progress", "speed"))
    assert extract(f"<think>{other}</think>{fenced(SIMPLE)}") == SIMPLE
    assert extract(f"{other}</think>{fenced(SIMPLE)}") == SIMPLE
    assert extract(f"<think>a</think>{fenced(SIMPLE)}<think>{other}") == SIMPLE


TEXT = st.one_of(
    st.text(max_size=300),
    st.lists(
        st.sampled_from(
            [
                "```",
                "~~~",
                "python",
                "\n",
                "\r\n",
                "<think>",
                "</think>",
                SIMPLE,
                "def reward(f)",
                " ",
            ]
        ),
        max_size=30,
    ).map("".join),
    st.binary(max_size=300).map(lambda content: content.decode("utf-8", "replace")),
)


@settings(max_examples=300, deadline=None)
@given(TEXT, st.sampled_from(["stop", "length", "", "content_filter"]))
def test_extraction_is_total(reply, finish_reason):
    try:
        code = extract(reply, finish_reason)
    except Refused as refused:
        assert "extract" in language.REASONS[refused.reason] and refused.stage == "extract"
    else:
        assert isinstance(code, str) and finish_reason != "length"


@pytest.mark.parametrize(
    "unit", ["<think>", "</think>", "```\n", "~~~\n", " ", "\n", "`", "def reward"]
)
def test_extraction_of_a_long_reply_ends(unit):
    with pytest.raises(Refused):
        extract(unit * (language.MAX_REPLY // len(unit)))


def test_no_text_reaches_python():
    """The module that evaluates programs calls nothing that could run or look up their text."""
    with open(language.__file__) as file:
        tree = ast.parse(file.read())
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"exec", "eval", "compile", "__import__", "vars", "globals", "setattr"}
    looked_up = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr"
    ]
    # Functions by our own list, and fields of syntax nodes.
    assert sorted(looked_up) == [
        "getattr(jnp, name)",
        "getattr(node, 'lineno', None)",
        "getattr(node, field, None)",
        "getattr(reward, 'type_params', None)",
    ]


@pytest.mark.parametrize(
    "body",
    [
        "import os",
        "while True:\n        pass",
        'a = __import__("os").environ',
        'a = f["speed"].at[0].set(1)',
        "a = jnp.save(1)",
        "a = [1]",
        "f['speed'] = 1",
        "a = 10.0 ** 10.0 ** 8",
        "a = 9 ** 9999999",
        "a = (lambda: 1)()",
        "a = jnp.sum(jnp.exp(open))",
    ],
)
def test_the_evaluator_refuses_what_the_check_would(body):
    """A program that was never checked computes nothing beyond the language either."""
    source = f'def reward(f):\n    {body}\n    a = {{1}}\n    return a, {{"a": a}}'
    program = language.Program(source, "", ("a",), ("speed",))
    with pytest.raises((Refused, KeyError)):
        evaluate(program, {"speed": jnp.float32(1.0)})


def test_numbers_alone_never_grow():
    program = check(reward('f["speed"] * 999999 / 3 % 7 // 2 + 7 // 2 + 2 ** 10 - True'), FEATURES)
    total, _ = evaluate(program, {"speed": jnp.float32(0.0)})
    assert total == 3 + 1024 - 1
    assert refusal(reward("999 ** 3")).reason == "bad_constant"
    assert refusal(reward("1000 * 1000 * 1000")).reason == "bad_constant"


def test_the_rules_name_every_function_and_hold_for_themselves():
    rules = describe()
    assert len(rules.splitlines()) == 10 and all(line[:2] == "- " for line in rules.splitlines())
    words = re.findall(r"\w+", rules)
    assert set(language.FUNCTION_NAMES) <= set(words)
    assert set(language.RESERVED_COMPONENTS) <= set(words)


def test_the_language_needs_no_environment():
    code = "import sys, projects.reward_llm.language; print([m for m in ('brax', 'flax', 'openai')"
    command = [sys.executable, "-c", f"{code} if m in sys.modules])"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


TOKEN = re.compile(r"\w+|\s+|[^\w\s]")
ODD_TOKENS = [
    *string.printable,
    "\u202e",
    "\ud800",
    "µ",
    "if",
    "for",
    "lambda",
    "None",
    "__x",
    "**",
]
ODD_EXPRESSIONS = [
    "[1, 2]",
    "{}",
    "1e9",
    "f",
    "jnp",
    "lambda: 0",
    "f[0]",
    "open",
    "x.y",
    "a if a else a",
    "a > 1",
    "jnp.array([a, 1])",
    "jnp.ones((3, 300))",
    "jnp.ones(a)",
    "1 / 0",
    "a ** a",
    "a / 0.0",
    "a * 1e6",
    "a.__class__",
    "'text'",
]


def mutants(count, seed):
    """Sources near valid ones: with other words, other expressions, or soups of their words."""
    generator = random.Random(seed)
    valid = [check(extract(reply), FEATURES).source for reply in ACCEPTED]
    soup = [token for source in valid for token in TOKEN.findall(source)]
    expressions = [node for source in valid for node in _expressions(ast.parse(source))]
    expressions += [ast.parse(text, mode="eval").body for text in ODD_EXPRESSIONS] * 10
    for i in range(count):
        source = generator.choice(valid)
        if i % 4 == 0:
            yield "def reward(f):\n    " + "".join(generator.choices(soup, k=30))
        elif i % 4 == 1:
            tree = ast.parse(source)
            old, new = generator.choice(_expressions(tree)), generator.choice(expressions)
            yield ast.unparse(_Replace(old, new).visit(tree))
        else:
            tokens = TOKEN.findall(source)
            for _ in range(generator.randint(1, 3)):
                at = generator.randrange(len(tokens))
                tokens[at] = generator.choice(["", tokens[at] * 2, *ODD_TOKENS, *tokens])
            yield "".join(tokens)


def _expressions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.expr)]


class _Replace(ast.NodeTransformer):
    def __init__(self, old, new):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else self.generic_visit(node)


def test_fuzzed_sources_are_programs_or_refused():
    outcomes = Counter()
    for source in mutants(1000, seed=1):
        try:
            program = check(source, FEATURES)
        except Refused as refused:
            outcomes[refused.reason] += 1
            continue
        outcomes["accepted"] += 1
        assert check(program.source, FEATURES) == program
    assert len(outcomes) > 15 and outcomes["accepted"] > 25, outcomes
