"""Replies as models write them, good, clumsy and hostile, with the reason that each must get."""

from typing import NamedTuple

from core_rl.features import Feature
from projects.reward_llm.language import MAX_REPLY

FEATURES = {
    "progress": Feature("m per step", -10.0, 10.0, "along the course"),
    "speed": Feature("m/s", 0.0, 100.0),
    "off_course": Feature("0 or 1", 0.0, 1.0, kind="flag"),
    "collision": Feature("0 or 1", 0.0, 1.0, kind="flag"),
    "steering_change": Feature("rad per step", -0.6, 0.6),
    "heading_error": Feature("rad", -3.2, 3.2),
    "passes": Feature("cars", -3.0, 3.0, kind="count"),
    "gap_ahead": Feature("m", 0.0, 200.0),
}


class Case(NamedTuple):
    reply: str
    reason: str = "accepted"
    finish_reason: str = "stop"


def fenced(code: str, language: str = "python") -> str:
    return f"Here is the reward.\n\n```{language}\n{code.strip()}\n```\n"


def body(*lines: str, total: str = "a", terms: str = '{"a": a}') -> str:
    """A reply whose reward has these lines and returns `total, terms`."""
    text = "".join(f"    {line}\n" for line in lines)
    return fenced(f"def reward(f):\n{text}    return {total}, {terms}")


def value(expression: str, total: str = "a") -> str:
    return body(f"a = {expression}", total=total)


P, S, O, C = 'f["progress"]', 'f["speed"]', 'f["off_course"]', 'f["collision"]'  # noqa: E741
SIMPLE = f'def reward(f):\n    a = {P}\n    return a, {{"a": a}}\n'

ACCEPTED = [
    value(P),
    "<think>Maybe ```python\ndef reward(f): pass\n``` would do?</think>\n"
    + value(f"jnp.tanh({P})"),
    "so the template began the thought </think>" + value(P),
    "<THINKING>hm</THINKING>" + value(f"0.1 * {P} - 2.0 * {O}"),
    SIMPLE,
    "import jax.numpy as jnp\n\n" + SIMPLE,
    "# The reward.\n" + SIMPLE,
    fenced(SIMPLE, ""),
    fenced(SIMPLE, "py"),
    fenced(SIMPLE, "Python title=reward.py"),
    value(P).replace("\n", "\r\n"),
    value(P).replace("```", "~~~"),
    value(P).replace("```", "`````"),
    "1. The code:\n\n" + "".join(f"   {line}\n" for line in fenced(SIMPLE).splitlines()),
    fenced("x = 1", "json") + fenced(SIMPLE),
    "The table again:\n```\nprogress | m\n```\n" + fenced(SIMPLE),
    fenced("speed = 3", "python") + fenced(SIMPLE),
    fenced(SIMPLE.replace("def reward(f)", "def reward(f: dict) -> tuple")),
    fenced(SIMPLE.replace("(f):\n", '(f):\n    """Pays for progress: f["nothing"]."""\n')),
    fenced('"""Module."""\nimport jax.numpy as jnp\n' + SIMPLE),
    fenced(SIMPLE.replace("(f):\n", "(f):\n    import jax.numpy as jnp\n")),
    body(f"a: float = {P}  # metres"),
    body(f"a = {P}", f"a += 0.1 * {S}", "a *= 2.0", "a /= 3", "a -= 1", "a **= 2"),
    body(f"a = b = {P}"),
    body(f'terms = {{"a": {P}, "b": -0.5 * {C}}}', total="sum(terms.values())", terms="terms"),
    value(f"jnp.where(({S} > 10.0) & ~({O} > 0.5), {P}, -1.0)"),
    value(f"jnp.where(({S} > 10) | ({C} > 0.5) ^ ({O} == 1), 0, {P})"),
    value(f"jnp.clip({P}, -1.0, 1.0) / 2 + jnp.minimum({S}, 30.0) / 30.0"),
    value(f"jnp.clip({P}, a_min=-1.0, a_max=1.0)"),
    value(f"jnp.clip({P}, min=-1.0, max=1.0)"),
    value(f"jnp.exp(-jnp.abs({P}) / 2.0) * jnp.pi"),
    value(f"-jnp.square({P}) + jnp.power({S}, 2) / 100.0"),
    value(f"jnp.sqrt(jnp.maximum({S}, 1e-3)) + {S} ** 0.5"),
    value(f"{S} ** (1 / 2) + {P} ** 3"),
    value(f"abs({P}) % 2 + {S} // 10"),
    value(f"jnp.sum(jnp.array([{P}, -{O}, 0.5 * {S}]) * jnp.array([1.0, 2, 0.1]))"),
    value(f"jnp.mean(jnp.stack([{P}, {S}]), axis=0)"),
    value(f"jnp.max(jnp.array([{P}, {S}], dtype=jnp.float32))"),
    value(f"jnp.float32({S} > 5.0) + jnp.sign({P})"),
    value(f"({S} > 5.0) * 1.0 + {P}"),
    value(f"jnp.nan_to_num({P} / jnp.maximum({S}, 1e-3), nan=0.0)"),
    value(f"jnp.logical_and({S} > 5, {O} < 0.5) * {P}"),
    value(f"jnp.log1p({S}) + jnp.cos({P}) * jnp.arctan2({P}, 1.0 + {S})"),
    value(f"{P} - 3 * jnp.where({C} > 0.5, {S}, 0.0) ** 2 / 1e4"),
    value('1e-2 * f["passes"] - 0.1 * f["gap_ahead"] / 200'),
    value("jnp.sign(f['passes'])"),
    value(P, total="jnp.round(a, decimals=1)"),
    body("k = 2", f"a = {P} ** k + jnp.e"),
    body("k = (0.5)", f"a = k * {P}"),
    fenced(
        f"""
import jax.numpy as jnp


def reward(f):
    # Progress is what wins; it is bounded so that a glitch cannot dominate.
    progress = jnp.tanh({P} / 2.0)
    # Leaving the course must cost more than it could gain.
    off = -1.5 * {O} * (1.0 + {S} / 100.0)
    crash = jnp.where({C} > 0.5, -5.0, 0.0)
    smooth = -0.2 * jnp.square(f["steering_change"] / 0.6)
    overtake = 0.5 * jnp.clip(f["passes"], -1.0, 1.0)
    near = jnp.exp(-f["gap_ahead"] / 20.0) * 0.1
    aligned = 0.1 * jnp.cos(f["heading_error"])
    total = progress + off + crash + smooth + overtake + near + aligned
    return total, {{
        "progress": progress,
        "off_course": off,
        "crash": crash,
        "smooth": smooth,
        "overtake": overtake,
        "near": near,
        "aligned": aligned,
    }}
"""
    )
    + "\nEvery term is bounded, and `if` was not needed.",
]

LOOP = f"for i in range(3):\n        a = {P}"
REFUSED = {
    "no_code": [
        "",
        "   \n",
        "I cannot help with that.",
        "Use progress minus crashes. def reward(f): return it.",
        "```json\n{}\n```",
        "```\njust a table\n```",
        "<think>" + value(P) + "</think> That is all.",
        "\ud800\udfff\x00",
        value(P) + "</think>",
    ],
    "ambiguous_code": [
        value(P) + value(S),
        value(P) + "or better\n" + value(P),
        value(P) + "```python\ndef reward(f):\n    return f",
    ],
    "truncated": [
        Case(value(P), "truncated", "length"),
        Case("", "truncated", "length"),
        "```python\ndef reward(f):\n    a = f[",
        "<think>and then I thought, and thought",
        "Well:\n```\ndef reward(f):",
    ],
    "too_large": [
        "x" * (MAX_REPLY + 1),
        fenced(SIMPLE + "#" + "x" * 30_000),
        body(*[f"a = {P}"] * 310),
        body(f"a = {P}", *["a = a + a * 0.1"] * 240),
        value(f"jnp.sum(jnp.ones((200000, 200000))) * {P}"),
        value(f"jnp.sum(jnp.zeros(257)) + {P}"),
        value(f"jnp.sum(jnp.full((1000, 1000), {P}))"),
    ],
    "syntax_error": [
        fenced("def reward(f) return 1"),
        fenced("def reward(f):\nreturn f"),
        value("f["),
        value("1 +"),
        value("“quoted”"),
        value("01"),
        value("1" * 5000),
        fenced(SIMPLE).replace("    return", "\treturn"),
        value('f["progress'),
        value("f.＿＿class＿＿"),  # no letter, so no name begins with it
    ],
    "too_deep": [
        value("-" * 400 + P),
        value("(" * 250 + P + ")" * 250),
        value("jnp.tanh(" * 70 + P + ")" * 70),
        value("f" + ".a" * 1000),
        value("- " * 9000 + "1"),
        value(" + ".join([P] * 70)),
    ],
    "bad_characters": [
        value(P + " + \x00"),
        value(P + "  # \u202e reversed"),
        value(P + " + \ud800"),
        value(P + "\x0c"),
    ],
    "forbidden_import": [
        fenced("import os\n" + SIMPLE),
        fenced("import numpy as np\n" + SIMPLE),
        fenced("from jax import numpy as jnp\n" + SIMPLE),
        fenced("import jax.numpy as jnp, os\n" + SIMPLE),
        fenced("import jax\n" + SIMPLE),
        body("import subprocess", f"a = {P}"),
        body("from os import *", f"a = {P}"),
    ],
    "forbidden_name": [
        value("undefined"),
        body("a = a + 1"),
        value("open"),
        value(f"np.tanh({P})"),
        value(f"math.exp({P})"),
        value(f"jax.nn.sigmoid({P})"),
        value("os.environ"),
        value("f"),
        value("jnp"),
        value("jnp.array(f)"),
        body("f = 3", "a = 1"),
        body("jnp = 3", "a = 1"),
        body(f"sum = {P}", "a = sum"),
        body(f"µ = {P}", "a = 1"),
        body(f"a = {P}", 't = {"a": a}', "b = t"),
    ],
    "forbidden_attribute": [
        value("jnp.save"),
        value("jnp.load('/etc/passwd')"),
        value("jnp.fromfile('x')"),
        value("jnp.linalg.norm(f['speed'])"),
        value("jnp.inf"),
        value(f"({S} > 3).astype(jnp.float32)"),
        value(f"{P}.at[0].set(1)"),
        value('f.get("speed", 0.0)'),
        value(f"jnp.array([{P}]).sum()"),
        value("jnp.random.uniform()"),
        value(f"jnp.vectorize({P})"),
        value('"{0}".format(1)'),
        value("f.items"),
    ],
    "forbidden_call": [
        value("open('/etc/passwd')"),
        value("eval('1')"),
        value("exec('1')"),
        value(f"max({P}, 0)"),
        value(f"min({P}, 0)"),
        value(f"float({P})"),
        value(f"sum([{P}, {S}])"),
        value(f"abs({P}, {S})"),
        value(f"pow({P}, 2)"),
        body(f"print({P})", f"a = {P}"),
        value("f['speed']()"),
        value(f"jnp.sum({P}, out=3)"),
        value(f"jnp.array([{P}], dtype=jnp.int32)"),
        value(f"getattr({P}, 'x')"),
        value(f"helper({P})"),
    ],
    "forbidden_syntax": [
        body(f"if {S} > 3:", f"    a = {P}", "else:", "    a = 0"),
        value(f"{P} if {S} > 3 else 0.0"),
        value(f"{S} > 3 and {P} > 0"),
        value(f"not {S} > 3"),
        value(f"1 < {S} < 3"),
        body(LOOP),
        body("while True:", "    pass"),
        value(f"jnp.array([{P} for i in range(3)])"),
        value(f"sum({P} for i in range(3))"),
        value("(lambda x: x)(1)"),
        body("def helper(x):", "    return x", f"a = {P}"),
        body("class A:", "    pass", f"a = {P}"),
        body("try:", f"    a = {P}", "except Exception:", "    a = 0"),
        body("with open('x') as g:", "    a = 1"),
        body("global a", f"a = {P}"),
        body(f"assert {S} > 0", f"a = {P}"),
        body("raise SystemExit", f"a = {P}"),
        body("pass", f"a = {P}"),
        body(f"a = {P}", "a"),
        body(f"a, b = {P}, {S}"),
        value(f"(b := {P})"),
        value("f'{1}'"),
        value(f"[{P}, {S}]"),
        value("jnp.array([1.0, 2.0])[0]"),
        value("jnp.array([*f])"),
        value("jnp.array(**{})"),
        value(f"jnp.sum([{P}, {S}])"),
        value(f"{P} @ {S}"),
        value("1 << 1000000"),
        value(f"{S} in (1, 2)"),
        value("(yield 1)"),
        body("a: float", f"a = {P}"),
    ],
    "forbidden_toplevel": [
        fenced("K = 2.0\n" + SIMPLE),
        fenced("def helper(x):\n    return x\n" + SIMPLE),
        fenced(SIMPLE + "print(reward({}))"),
        fenced(SIMPLE + SIMPLE),
        SIMPLE + "\nreward",
    ],
    "dunder": [
        value("().__class__.__bases__[0].__subclasses__()"),
        value("__import__('os').system('id')"),
        value("f._＿class__"),  # folded to _ by the parser
        value("jnp.__dict__"),
        fenced('if __name__ == "__main__":\n    pass\n' + SIMPLE),
        fenced("import __future__\n" + SIMPLE),
        fenced(SIMPLE.replace("(f)", "(f, __x=1)")),
        value("jnp.array([1], __x=2)"),
    ],
    "bad_signature": [
        fenced(SIMPLE.replace("(f)", "(features)")),
        fenced(SIMPLE.replace("(f)", "(f, g)")),
        fenced(SIMPLE.replace("(f)", "(f=None)")),
        fenced(SIMPLE.replace("(f)", "(*f)")),
        fenced(SIMPLE.replace("(f)", "(f, **k)")),
        fenced(SIMPLE.replace("(f)", "(f, /)")),
        fenced(SIMPLE.replace("(f)", "()")),
        fenced("@jax.jit\n" + SIMPLE),
        fenced("async " + SIMPLE),
    ],
    "no_reward_function": [
        fenced(SIMPLE.replace("def reward", "def compute_reward")),
        fenced("x = 1"),
        fenced("x = 1") + fenced("y = 1"),
        fenced("reward = lambda f: 0"),
        fenced("class Reward:\n    def reward(self):\n        pass"),
    ],
    "unknown_feature": [value('f["velocity"]'), value('f["__class__"]'), value('f["Speed"]')],
    "dynamic_key": [
        value("f[0]"),
        value('f["pro" + "gress"]'),
        body("k = 3", "a = f[k]"),
        body(f"a = {P}", terms="{a: a}"),
        value('f[f"speed"]'),
    ],
    "mutation": [
        body('f["speed"] = 0.0', f"a = {P}"),
        body('f["speed"] += 1.0', f"a = {P}"),
        body(f"a = {P}", 't = {"a": a}', 't["b"] = 1.0'),
        body(f"a = {P}", 't = {"a": a}', 't.update({"b": 1.0})'),
        body("jnp.tanh = 3", f"a = {P}"),
        body(f"a = {P}", "del a"),
    ],
    "bad_constant": [
        value("10**10**8"),
        value("1e7"),
        value("1e999"),
        value("10000000"),
        value(f"{P} * 2j"),
        value("'text'"),
        value("None"),
        value("..."),
        value("b'1'"),
        value(f"{P} ** 17"),
        value(f"{P} ** -17"),
        value(f"{P} ** {S}"),
        value(f"2 ** {P}"),
        value(f"jnp.power(2.0, {P})"),
        value("1 / 0"),
        value(f"{P} + 1 % 0"),
        value("0 ** -1"),
        value("(-8) ** 0.5"),
        value("1000000 * 1000000"),
        body("k = 1000", "k **= 3", f"a = k * {P}"),
        value(f"jnp.sum(jnp.array([{P}]), axis={P})"),
        value("0 * 10**10"),
    ],
    "bad_component_name": [
        body(f"a = {P}", terms='{"Total Reward": a}'),
        body(f"a = {P}", terms='{"total": a}'),
        body(f"a = {P}", terms='{"task_score": a}'),
        body(f"a = {P}", terms='{"ignore all rules": a}'),
        body(f"a = {P}", terms='{"a\\n": a}'),
        body(f"a = {P}", terms="{1: a}"),
        body(f"a = {P}", terms='{"' + "a" * 33 + '": a}'),
    ],
    "duplicate_component": [body(f"a = {P}", terms='{"a": a, "a": a}')],
    "too_many_components": [
        body(f"a = {P}", terms="{" + ", ".join(f'"t{i}": a' for i in range(17)) + "}")
    ],
    "bad_return": [
        fenced(f"def reward(f):\n    return {P}"),
        fenced(f"def reward(f):\n    a = {P}"),
        fenced("def reward(f):\n    '''Nothing.'''"),
        fenced("def reward(f):\n    return"),
        body(f"a = {P}", terms="a"),
        body(f"a = {P}", terms="{}"),
        body(f"a = {P}", terms="{}, a"),
        body(f"a = {P}", total='{"a": a}', terms="a"),
        body("return 1, {}", f"a = {P}"),
    ],
    "not_traceable": [
        value(f"jnp.sum(jnp.ones({S}))"),
        value(f"jnp.sum(jnp.array([{P}, 1.0]), {S})"),
        value(f"jnp.sum(jnp.zeros(({S}, 2)))"),
    ],
    "trace_error": [
        value(f"jnp.tanh({P}, {S}, 1)"),
        value("jnp.tanh()"),
        value(f"jnp.array([1.0, 2.0]) * jnp.array([1.0, 2.0, {P}])"),
        value(f"jnp.sum({P}, axis=3)"),
        value(f"-({S} > 3)"),
    ],
    "bad_shape": [
        value(f"jnp.array([{P}, {S}])"),
        body(f"a = {P}", terms='{"a": jnp.stack([a, a])}'),
        value(f"jnp.array([{P}])"),
    ],
    "bad_dtype": [
        value(f"{S} > 3"),
        body(f"a = {P}", terms='{"a": a > 0}'),
        value(f"{O} & {C}"),
        value(f"~{O}"),
        body(f"a = {P}", total="True"),
    ],
    "non_finite": [
        value(f"1.0 / {S}"),
        value(f"jnp.log({S})"),
        value(f"jnp.sqrt({P})"),
        value(f"jnp.exp({S})"),
        value(f"{P} ** 0.5"),
        value(f"1.0 / ({O} + {C} - 2.0)"),
        value(f"jnp.arccos({P})"),
        body(f"a = {P}", terms=f'{{"a": a, "b": jnp.log({O})}}'),
        value(f"{P} / (1.0 - {O})"),
    ],
    "out_of_range": [
        value(f"{S} * {S} * {S}"),
        value(f"1e6 * {P}"),
        value(f"1e5 * {C} * {O}"),
    ],
    "constant_reward": [
        value("1.0"),
        value(f"0.0 * {P}"),
        value(f"jnp.sin({P}) ** 2 + jnp.cos({P}) ** 2"),
        value(f"jnp.maximum({S}, 200.0)"),
        value(P, total="3.0"),
    ],
}

CASES = [Case(reply) for reply in ACCEPTED] + [
    entry if isinstance(entry, Case) else Case(entry, reason)
    for reason, entries in REFUSED.items()
    for entry in entries
]
