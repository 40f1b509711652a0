"""The language of designed rewards: checked text, evaluated here and never executed.

    def reward(f):
        progress = f["progress"]
        crash = jnp.where(f["collision"] > 0.5, -5.0, 0.0)
        return progress + crash, {"progress": progress, "crash": crash}

What a model (or a colleague) writes is parsed and checked against an allow-list, and `evaluate`
walks the tree over a table of functions. No text reaches exec, eval, compile or getattr, so a
program can do what the evaluator knows and nothing else.
"""

import ast
import dataclasses
import difflib
import functools
import hashlib
import math
import operator
import re
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax import Array

MAX_REPLY = 200_000  # characters of a model's message
MAX_SOURCE = 20_000  # bytes of a program
MAX_NODES = 1_500
MAX_DEPTH = 60  # also bounds the recursion of this module and of ast.unparse
MAX_CONSTANT = 1e6
MAX_EXPONENT = 16
MAX_COMPONENTS = 16
MAX_HINT = 300  # characters
ID_DIGITS = 12
IMPORT = "import jax.numpy as jnp"

# Names of terms travel to the next prompt and to the logs: nothing but words, and none of the
# words that name what candidates are judged by.
COMPONENT = re.compile(r"[a-z][a-z0-9_]{0,31}")
RESERVED_COMPONENTS = (
    "total",
    "reward",
    "task_score",
    "score",
    "fitness",
    "rank",
    "lap_time",
    "metric",
    "metrics",
)

# Every reason for a refusal, with the stages at which it is found; the first is the usual one.
REASONS: dict[str, tuple[str, ...]] = {
    "no_code": ("extract",),
    "ambiguous_code": ("extract",),
    "truncated": ("extract",),
    "too_large": ("parse", "extract", "jaxpr"),
    "syntax_error": ("parse",),
    "too_deep": ("parse",),
    "bad_characters": ("parse",),
    "forbidden_import": ("ast",),
    "forbidden_name": ("ast",),
    "forbidden_attribute": ("ast",),
    "forbidden_call": ("ast",),
    "forbidden_syntax": ("ast",),
    "forbidden_toplevel": ("ast",),
    "dunder": ("ast",),
    "bad_signature": ("ast",),
    "no_reward_function": ("ast", "extract"),
    "unknown_feature": ("ast",),
    "dynamic_key": ("ast",),
    "mutation": ("ast",),
    "bad_constant": ("ast",),
    "bad_component_name": ("ast",),
    "duplicate_component": ("ast",),
    "too_many_components": ("ast",),
    "bad_return": ("ast",),
    "not_traceable": ("trace",),
    "trace_error": ("trace",),
    "bad_shape": ("trace",),
    "bad_dtype": ("trace",),
    "forbidden_primitive": ("jaxpr",),
    "non_finite": ("probe",),
    "out_of_range": ("probe",),
    "constant_reward": ("probe",),
    "non_finite_gradient": ("probe",),  # only where gradients are asked for
    "timeout": ("worker",),
    "out_of_memory": ("worker",),
    "crashed": ("worker",),
    "bad_record": ("record",),  # a line of a batch that holds no reply
}

FUNCTION_NAMES = """
    abs absolute add all any arccos arcsin arcsinh arctan arctan2 array asarray cbrt ceil clip cos
    cosh deg2rad divide dot equal exp exp2 expm1 fabs float32 floor floor_divide fmax fmin fmod full
    full_like greater greater_equal heaviside hypot isfinite isinf isnan less less_equal log log10
    log1p log2 logaddexp logical_and logical_not logical_or logical_xor max maximum mean min minimum
    mod multiply nan_to_num negative not_equal ones ones_like power prod rad2deg reciprocal
    remainder rint round sign sin sinh sqrt square stack std subtract sum tan tanh true_divide trunc
    var where zeros zeros_like
""".split()
# Lists and tuples exist as an argument of these only.
LIST_FUNCTIONS = ("array", "asarray", "stack", "zeros", "ones", "full")
KEYWORDS = ("axis", "keepdims", "min", "max", "decimals", "dtype", "nan", "posinf", "neginf")
CONSTANT_KEYWORDS = ("axis", "keepdims", "decimals")
OLD_CLIP_KEYWORDS = {"a_min": "min", "a_max": "max"}  # numpy's names, which jax no longer takes
BUILTINS = ("abs", "sum")
OWN_NAMES = ("f", "jnp", *BUILTINS)  # not to be assigned
CONSTANTS = {"pi": math.pi, "e": math.e}

_FUNCTIONS: dict[str, Callable[..., Any]] = {name: getattr(jnp, name) for name in FUNCTION_NAMES}

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_LOGIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}

_WHERE = "use jnp.where(condition, a, b)"
_LOOP = "write the terms out one by one"
_SYNTAX_HINTS: dict[type, str] = {
    ast.If: f"`if` is not in the language; {_WHERE}",
    ast.IfExp: f"`a if c else b` is not in the language; {_WHERE}",
    ast.Match: f"`match` is not in the language; {_WHERE}",
    ast.BoolOp: "`and`/`or` are not in the language; use & and | on comparisons: (a > 0) & (b > 0)",
    ast.Not: "`not` is not in the language; use ~(a > 0) or the opposite comparison",
    ast.For: f"loops are not in the language; {_LOOP}",
    ast.While: f"loops are not in the language; {_LOOP}",
    ast.ListComp: f"comprehensions are not in the language; {_LOOP}",
    ast.SetComp: f"comprehensions are not in the language; {_LOOP}",
    ast.DictComp: f"comprehensions are not in the language; {_LOOP}",
    ast.GeneratorExp: f"comprehensions are not in the language; {_LOOP}",
    ast.Lambda: "helper functions are not in the language; write the expression where it is used",
    ast.FunctionDef: "helper functions are not in the language; write the expression in reward(f)",
    ast.AsyncFunctionDef: "helper functions are not in the language; write plain expressions",
    ast.ClassDef: "classes are not in the language; write plain expressions in reward(f)",
    ast.Try: "`try` is not in the language; guard values with jnp.where or jnp.maximum",
    ast.Assert: "`assert` is not in the language; remove it",
    ast.Raise: "`raise` is not in the language; remove it",
    ast.Pass: "`pass` is not needed; remove it",
    ast.JoinedStr: "f-strings are not in the language; write the name as a plain string",
    ast.NamedExpr: "`:=` is not in the language; assign on a line of its own",
    ast.Starred: "`*` unpacking is not in the language; write the values out",
    ast.Set: "sets are not in the language; use jnp.array([...])",
    ast.Dict: 'a dict is only for the terms: terms = {"name": value}, or in the return',
    ast.List: "a list is only an argument of jnp.array or jnp.stack",
    ast.Tuple: "a tuple is only an argument of jnp.array or jnp.stack, or total, terms in return",
    ast.Subscript: 'only f["name"] can be indexed; assign the value to a name of its own',
    ast.MatMult: "`@` is not in the language; use jnp.sum(a * b)",
    ast.LShift: "shifts are not in the language; multiply instead",
    ast.RShift: "shifts are not in the language; divide instead",
}
_CALL_HINTS = {
    "min": "use jnp.minimum(a, b)",
    "max": "use jnp.maximum(a, b)",
    "float": "drop float(...): features are numbers; for a comparison jnp.where(c, 1.0, 0.0)",
    "int": "use jnp.floor(x)",
    "bool": "use a comparison, x > 0.5",
    "round": "use jnp.round(x)",
    "pow": "use x ** 2",
    "len": "write the number",
    "range": _LOOP,
    "print": "remove it",
    "sum": "sum takes one thing, terms.values() of a dict of terms; otherwise add with +",
    "abs": "abs takes one value",
}
_METHOD_HINTS = {
    "astype": "use jnp.where(condition, 1.0, 0.0)",
    "get": 'read features as f["name"]',
    "items": "write the terms out one by one",
    "keys": "write the terms out one by one",
    "values": "only sum(terms.values()) of a dict of terms is known",
    "item": "values are scalars already; drop .item()",
}
_MUTATORS = ("update", "setdefault", "pop", "popitem", "clear", "append", "extend", "insert", "set")
_NAME_HINTS = {
    "np": "write jnp instead of np",
    "numpy": "write jnp instead of numpy",
    "math": "write jnp instead of math",
    "jax": "only jnp is there; sigmoid(x) is 0.5 * (jnp.tanh(0.5 * x) + 1.0)",
    "f": 'f is only read as f["name"]',
    "jnp": "jnp is only used as jnp.name(...)",
}
_NOT_TRACEABLE = "this argument must be a number known in advance, not a feature"
_MUTATION = 'write the dict of terms once, complete: terms = {"a": a, "b": b}'
_RETURN = 'end with the one return: return total, {"name": term, ...}'


class Refused(Exception):  # noqa: N818 - a verdict on a text, not an error of ours
    """Why a text is no reward: a class of REASONS, the stage that found it, and how to mend it."""

    def __init__(
        self, reason: str, hint: str, line: int | None = None, *, stage: str | None = None
    ):
        self.reason = reason
        self.stage = stage or REASONS[reason][0]
        self.line = line
        self.hint = one_line(hint if line is None else f"line {line}: {hint}")
        super().__init__(f"{reason}: {self.hint}")


@dataclasses.dataclass(frozen=True)
class Program:
    source: str  # canonical: no comments, docstring, annotations or import
    id: str  # of the canonical source, the same on every machine
    terms: tuple[str, ...]  # names of the components, in order
    features: tuple[str, ...]  # names that it reads, sorted


def one_line(text: str, limit: int = MAX_HINT) -> str:
    """Printable ASCII on one line, without paths of this machine: hints go to prompts and logs."""
    text = re.sub(r"(?:/[\w.+~-]+){2,}/?", "...", text.replace("`" * 3, "'"))
    text = " ".join(re.sub(r"[^ -~]+", " ", text).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def describe() -> str:
    """The language in ten bullets, for a prompt."""
    functions = " ".join(FUNCTION_NAMES)
    names = ", ".join(RESERVED_COMPONENTS)
    return f"""\
- Write exactly one function, `def reward(f):`, without decorators, defaults or helper functions; \
the only import that may stand before it is `{IMPORT}`.
- Read features as `f["name"]` with a name of the table, written out; each is one float number.
- Statements are assignments to plain names (`x = ...`, `x += ...`) and, last, the one return.
- Return `total, {{"name": term, ...}}`, or `total, terms` after `terms = {{"name": term, ...}}`: \
1 to {MAX_COMPONENTS} terms; `sum(terms.values())` adds them up. total and terms are float scalars.
- Names of terms are lower-case words such as `on_track`, and not one of: {names}.
- Operators: + - * / // % **, one comparison at a time (< <= > >= == !=), and & | ^ ~ on \
comparisons: `(a > 0) & (b > 0)`. No if, `x if c else y`, and, or, not, loops, comprehensions, \
lambda, indexing, methods, f-strings or try: choose with `jnp.where(condition, a, b)`.
- Functions: `abs(x)` and `jnp.NAME(...)` with NAME one of: {functions}; and jnp.pi, jnp.e.
- Lists only as an argument of jnp.array or jnp.stack; keyword arguments: axis, keepdims, min, max.
- Numbers are at most {MAX_CONSTANT:g}; the exponent of ** is a number of at most {MAX_EXPONENT}.
- Every value must be finite for all features in their ranges: guard divisions, logarithms and \
roots, and bound each term (jnp.tanh, jnp.clip, jnp.exp of something negative)."""


def extract(reply: str, finish_reason: str = "stop") -> str:
    """The one block of code of a model's reply that defines `reward`. Raises Refused.

    Work on strings only, linear in their length: the text is not parsed here.
    """
    if len(reply) > MAX_REPLY:
        hint = f"the reply has more than {MAX_REPLY} characters; answer with one short function"
        raise Refused("too_large", hint, stage="extract")
    if finish_reason == "length":
        raise Refused("truncated", "the reply was cut at its length limit; answer more briefly")
    text, unfinished = _without_thoughts(reply.replace("\r\n", "\n").replace("\r", "\n"))
    blocks = list(_fenced_blocks(text))
    candidates = [block for block in blocks if block.language in ("", *_PYTHON)]
    rewards = [block for block in candidates if _DEF_REWARD.search(block.text)]
    closed = [block for block in rewards if block.closed]
    if len(closed) > 1 or (closed and len(rewards) > 1):
        raise Refused("ambiguous_code", "several code blocks define reward; answer with one block")
    if closed:
        return closed[0].text
    if unfinished or any(not block.closed for block in candidates):
        raise Refused("truncated", "the reply ends within its code block; close the fence")
    tagged = [block for block in candidates if block.language or "def " in block.text]
    if len(tagged) == 1:
        return tagged[0].text  # let the parser say what it lacks
    if tagged:
        hint = "no code block has `def reward(f):`; write that function in one block"
        raise Refused("no_reward_function", hint, stage="extract")
    if not blocks and _CODE_START.match(text) and _DEF_REWARD.search(text):
        return text
    raise Refused("no_code", "no code found; answer with one fenced block that has reward(f)")


def check(source: str, names: Collection[str]) -> Program:
    """The program of a text, for features of these names. Raises Refused."""
    return check_tree(source, names)[0]


def check_tree(source: str, names: Collection[str]) -> tuple[Program, ast.FunctionDef]:
    """As `check`, with the checked tree, whose lines are those of `source`. Raises Refused."""
    tree = _parse(source)
    for node in _walk(tree):
        for name in _identifiers(node):
            if name.startswith("__"):
                raise Refused("dunder", "names that begin with __ are refused", _line(node))
    function = _plain(_reward_function(tree))
    checker = _Checker(names)
    terms = checker.function(function)
    canonical = ast.unparse(function)
    return _program(canonical, terms, tuple(sorted(checker.read))), function


def evaluate(program: Program, features: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Total [] and its terms [] by name, of features [] by name; pure, to be traced and vmapped.

    The terms come in the order of `program.terms`; what jax returns of them it sorts by name.

    Raises Refused where the arguments do not fit a function, which a validated program rules out.
    """
    return evaluate_tree(_canonical_tree(program.source), features)


def evaluate_tree(
    function: ast.FunctionDef, features: Mapping[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """As `evaluate`, of a tree that `check_tree` returned."""
    scope: dict[str, Any] = {}
    for statement in function.body:
        if isinstance(statement, ast.Assign):
            value = _terms_or_value(statement.value, scope, features)
            scope |= {_target(target): value for target in statement.targets}
        elif isinstance(statement, ast.AugAssign):
            name = _target(statement.target)
            right = _value(statement.value, scope, features)
            scope[name] = _guarded(statement, _binary, statement.op, scope[name], right)
        elif isinstance(statement, ast.Return) and isinstance(statement.value, ast.Tuple):
            total_node, terms_node = statement.value.elts
            total = _value(total_node, scope, features)
            terms = _terms_or_value(terms_node, scope, features)
            line = statement.lineno
            return _scalar(total, "total", line), {
                name: _scalar(term, f'the term "{name}"', line) for name, term in terms.items()
            }
        else:
            raise Refused("forbidden_syntax", "unknown statement", statement.lineno)
    raise Refused("bad_return", _RETURN)


# Extraction.

_PYTHON = ("python", "py", "python3")
_THOUGHT = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([^`\n]*)")
_DEF_REWARD = re.compile(r"^[ \t]*(?:async[ \t]+)?def[ \t]+reward[ \t]*\(", re.MULTILINE)
_CODE_START = re.compile(r"\s*(?:def |async def |import |from |@|#|\"\"\"|''')")


@dataclasses.dataclass(frozen=True)
class _Block:
    language: str
    text: str
    closed: bool


def _without_thoughts(text: str) -> tuple[str, bool]:
    """Drops <think>...</think>, and whether a thought has no end.

    Some servers put the opening tag into the prompt: an end without a beginning ends a thought
    that began with the reply.
    """
    kept: list[str] = []
    begin, thinking = 0, False
    for tag in _THOUGHT.finditer(text):
        if tag[1]:
            if not thinking:
                kept.clear()
            begin, thinking = tag.end(), False
        elif not thinking:
            kept.append(text[begin : tag.start()])
            thinking = True
    if not thinking:
        kept.append(text[begin:])
    return "".join(kept), thinking


def _fenced_blocks(text: str) -> Iterator[_Block]:
    opening, language, lines = None, "", []
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line)
        if opening is None:
            if fence:
                opening, lines = fence, []
                language = (fence[3].split() or [""])[0].lower().strip("{}.")
        elif fence and fence[2].startswith(opening[2]) and not fence[3].strip():
            yield _Block(language, textwrap.dedent("\n".join(lines)) + "\n", True)
            opening = None
        else:
            lines.append(line.removeprefix(opening[1]))  # the indentation of a fence in a list
    if opening is not None:
        yield _Block(language, "\n".join(lines), False)


# Parsing.

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def _parse(source: str) -> ast.Module:
    if len(source) > MAX_SOURCE or len(source.encode("utf-8", "replace")) > MAX_SOURCE:
        raise Refused("too_large", f"the code has more than {MAX_SOURCE} bytes; write less")
    source = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    control = _CONTROL.search(source)
    if control:
        line = source.count("\n", 0, control.start()) + 1
        code = f"U+{ord(control[0]):04X}"
        raise Refused("bad_characters", f"control character {code}; write plain text", line)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes and the like
            tree = ast.parse(source)
    except SyntaxError as error:
        message = error.msg or "not Python"
        if "too many" in message:
            raise Refused("too_deep", f"{message}; use several assignments", error.lineno) from None
        raise Refused("syntax_error", f"not Python: {message}", error.lineno) from None
    except (MemoryError, RecursionError):  # what CPython's parser says to deep nesting
        raise Refused("too_deep", "nested too deeply; use several assignments") from None
    except ValueError:
        raise Refused("bad_characters", "characters that Python cannot read") from None
    count, level = 0, [tree]
    for depth in range(MAX_DEPTH + 1):
        count += len(level)
        if count > MAX_NODES:
            raise Refused("too_large", f"more than {MAX_NODES} elements of syntax; write less")
        children = [child for node in level for child in ast.iter_child_nodes(node)]
        level = [child for child in children if not isinstance(child, ast.expr_context)]
        if not level:
            return tree
        if depth == MAX_DEPTH:
            hint = f"nested more than {MAX_DEPTH} levels deep; use several assignments"
            raise Refused("too_deep", hint, _line(level[0]))
    return tree


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    return ast.walk(tree)  # iterative


def _identifiers(node: ast.AST) -> Iterator[str]:
    """All names in a node itself; parsing has folded them to NFKC."""
    for field in ("id", "attr", "arg", "name", "asname", "module", "rest"):
        value = getattr(node, field, None)
        if isinstance(value, str):
            yield from value.split(".")
    if isinstance(node, ast.Global | ast.Nonlocal):
        yield from node.names
    if isinstance(node, ast.MatchClass):
        yield from node.kwd_attrs


def _line(node: ast.AST) -> int | None:
    return getattr(node, "lineno", None)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _check_import(node: ast.AST) -> bool:
    """Whether this is the import that is tolerated; raises Refused for any other."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return False
    if ast.unparse(node) != IMPORT:
        hint = f"imports are refused, except `{IMPORT}`; only jnp is needed"
        raise Refused("forbidden_import", hint, node.lineno)
    return True


def _reward_function(tree: ast.Module) -> ast.FunctionDef:
    body = [node for node in tree.body if not _check_import(node)]
    body = body[1:] if body and _is_text(body[0]) else body
    functions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    rewards = [node for node in functions if node.name == "reward"]
    if not rewards:
        hint = "there is no `def reward(f):`"
        if functions:
            hint += f"; call the function reward, not {functions[0].name[:40]}"
        raise Refused("no_reward_function", hint)
    reward = rewards[0]
    for node in body:
        if node is not reward:
            hint = "only `def reward(f):` may stand at the top level; move the rest into it"
            raise Refused("forbidden_toplevel", hint, _line(node))
    arguments = reward.args
    plain = [argument.arg for argument in arguments.args] == ["f"]
    others = (
        arguments.posonlyargs,
        arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
        arguments.defaults,
        reward.decorator_list,
        getattr(reward, "type_params", None),
    )
    if isinstance(reward, ast.AsyncFunctionDef) or not plain or any(others):
        hint = "the signature must be `def reward(f):`, with nothing before or behind"
        raise Refused("bad_signature", hint, reward.lineno)
    return reward


def _plain(reward: ast.FunctionDef) -> ast.FunctionDef:
    """Without what has no meaning here: docstring, import and annotations."""
    reward.returns = None
    reward.args.args[0].annotation = None
    body = [node for node in reward.body if not _check_import(node)]
    body = body[1:] if body and _is_text(body[0]) else body
    for i, node in enumerate(body):
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            body[i] = ast.copy_location(ast.Assign([node.target], node.value), node)
    reward.body = body
    return reward


def _program(canonical: str, terms: tuple[str, ...], features: tuple[str, ...]) -> Program:
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return Program(canonical, digest[:ID_DIGITS], terms, features)


@functools.lru_cache(maxsize=1024)
def _canonical_tree(source: str) -> ast.FunctionDef:
    (function,) = _parse(source).body
    assert isinstance(function, ast.FunctionDef)
    return function


# The allow-list.


class _Value:
    """What a name or expression stands for, where it is not a number known in advance."""


_DYNAMIC = _Value()
_Known = int | float | _Value


class _Checker:
    """Walks the tree of a reward once; numbers known in advance are folded on the way."""

    def __init__(self, names: Collection[str]):
        self.names = names
        self.read: set[str] = set()  # features
        self.scope: dict[str, _Known | tuple[str, ...]] = {}  # a tuple: names of a dict of terms

    def function(self, function: ast.FunctionDef) -> tuple[str, ...]:
        """Names of the returned terms."""
        if not function.body or not isinstance(function.body[-1], ast.Return):
            for statement in function.body:  # what is wrong on the way is the better hint
                self.statement(statement)
            raise Refused("bad_return", _RETURN, function.lineno)
        for statement in function.body[:-1]:
            self.statement(statement)
        return self.returned(function.body[-1])

    def statement(self, node: ast.stmt):
        if isinstance(node, ast.Return):
            raise Refused("bad_return", f"return before the end; {_RETURN}", node.lineno)
        if isinstance(node, ast.Assign):
            is_terms = isinstance(node.value, ast.Dict)
            names = [self.target(target) for target in node.targets]
            value = self.terms(node.value) if is_terms else self.expression(node.value)
            self.scope |= dict.fromkeys(names, value)
        elif isinstance(node, ast.AugAssign):
            name = self.target(node.target)
            old = self.name(name, node)
            self.scope[name] = self.binary(node, node.op, old, self.expression(node.value))
        elif isinstance(node, ast.AnnAssign):
            raise Refused("forbidden_syntax", "a name without a value; remove it", node.lineno)
        elif isinstance(node, ast.Expr):
            value = node.value
            called = value.func if isinstance(value, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in _MUTATORS:
                raise Refused("mutation", f".{called.attr}() changes; {_MUTATION}", node.lineno)
            if not isinstance(value, ast.Constant):
                self.expression(value)
            raise Refused("forbidden_syntax", "a line without effect; remove it", node.lineno)
        elif isinstance(node, ast.Delete):
            raise Refused("mutation", "`del` is not in the language; remove it", node.lineno)
        else:
            _unknown_syntax(node)

    def target(self, node: ast.expr) -> str:
        if isinstance(node, ast.Subscript | ast.Attribute):
            what = ast.unparse(node.value)[:20] if isinstance(node.value, ast.Name) else "values"
            raise Refused("mutation", f"{what} cannot be changed; {_MUTATION}", node.lineno)
        if not isinstance(node, ast.Name):
            raise Refused("forbidden_syntax", "assign to one plain name per line", node.lineno)
        if node.id in OWN_NAMES:
            raise Refused("forbidden_name", f"{node.id} cannot be assigned; rename", node.lineno)
        if not node.id.isascii():
            raise Refused("forbidden_name", "names are ASCII letters, digits and _", node.lineno)
        return node.id

    def returned(self, node: ast.Return) -> tuple[str, ...]:
        if not isinstance(node.value, ast.Tuple) or len(node.value.elts) != 2:
            raise Refused("bad_return", _RETURN, node.lineno)
        total, terms = node.value.elts
        if isinstance(total, ast.Dict):
            raise Refused("bad_return", f"the total comes first; {_RETURN}", node.lineno)
        self.expression(total)
        if isinstance(terms, ast.Dict):
            return self.terms(terms)
        if isinstance(terms, ast.Name) and isinstance(names := self.scope.get(terms.id), tuple):
            return names
        self.expression(terms)  # its own fault is the better hint
        raise Refused("bad_return", f"the second value is no dict of terms; {_RETURN}", node.lineno)

    def terms(self, node: ast.expr) -> tuple[str, ...]:
        assert isinstance(node, ast.Dict)
        names: list[str] = []
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                raise Refused("forbidden_syntax", _SYNTAX_HINTS[ast.Starred], value.lineno)
            if not isinstance(key, ast.Constant):
                raise Refused("dynamic_key", "write the term's name as a string", key.lineno)
            name = key.value
            if not isinstance(name, str) or not COMPONENT.fullmatch(name):
                hint = "a term's name is lower-case letters, digits and _, at most 32"
                raise Refused("bad_component_name", hint, key.lineno)
            if name in RESERVED_COMPONENTS:
                hint = f'"{name}" is reserved; name the term after what it pays for'
                raise Refused("bad_component_name", hint, key.lineno)
            if name in names:
                hint = f'the term "{name}" is there twice; give it another name'
                raise Refused("duplicate_component", hint, key.lineno)
            names.append(name)
            self.expression(value)
        if not names:
            raise Refused("bad_return", f"a dict without terms; {_MUTATION}", node.lineno)
        if len(names) > MAX_COMPONENTS:
            hint = f"{len(names)} terms; at most {MAX_COMPONENTS}, better 3 to 7"
            raise Refused("too_many_components", hint, node.lineno)
        return tuple(names)

    def name(self, name: str, node: ast.expr | ast.stmt) -> _Known:
        if name not in self.scope:
            hint = _NAME_HINTS.get(name) or f"{name[:40]} is not assigned before this line"
            raise Refused("forbidden_name", hint, node.lineno)
        value = self.scope[name]
        if isinstance(value, tuple):
            hint = f"the dict {name[:40]} is no number; use sum({name[:40]}.values())"
            raise Refused("forbidden_name", hint, node.lineno)
        return value

    def expression(self, node: ast.expr) -> _Known:
        if isinstance(node, ast.Constant):
            return _check_constant(node)
        if isinstance(node, ast.Name):
            return self.name(node.id, node)
        if isinstance(node, ast.BinOp):
            left = self.expression(node.left)
            return self.binary(node, node.op, left, self.expression(node.right))
        if isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.Not):
                raise Refused("forbidden_syntax", _SYNTAX_HINTS[ast.Not], node.lineno)
            value = self.expression(node.operand)
            return value if value is _DYNAMIC else _at(node, _unary, node.op, value)
        if isinstance(node, ast.Compare):
            if len(node.ops) != 1:
                hint = "chained comparison; write (a < b) & (b < c)"
                raise Refused("forbidden_syntax", hint, node.lineno)
            if type(node.ops[0]) not in _COMPARISONS:
                hint = "`in` and `is` are not in the language; use < <= > >= == !="
                raise Refused("forbidden_syntax", hint, node.lineno)
            left, right = self.expression(node.left), self.expression(node.comparators[0])
            if isinstance(left, _Value) or isinstance(right, _Value):
                return _DYNAMIC
            return _COMPARISONS[type(node.ops[0])](left, right)
        if isinstance(node, ast.Subscript):
            return self.subscript(node)
        if isinstance(node, ast.Attribute):
            return self.attribute(node)
        if isinstance(node, ast.Call):
            return self.call(node)
        _unknown_syntax(node)

    def binary(
        self, node: ast.expr | ast.stmt, kind: ast.operator, left: _Known, right: _Known
    ) -> _Known:
        if type(kind) not in _ARITHMETIC and type(kind) not in _LOGIC:
            hint = _SYNTAX_HINTS.get(type(kind), "an unknown operator")
            raise Refused("forbidden_syntax", hint, node.lineno)
        if isinstance(kind, ast.Pow):
            _at(node, _check_exponent, right)
        if isinstance(left, _Value) or isinstance(right, _Value):
            return _DYNAMIC
        return _at(node, _binary, kind, left, right)

    def subscript(self, node: ast.Subscript) -> _Known:
        if not (isinstance(node.value, ast.Name) and node.value.id == "f"):
            if not isinstance(node.value, ast.Name):
                self.expression(node.value)  # its own fault is the better hint
            raise Refused("forbidden_syntax", _SYNTAX_HINTS[ast.Subscript], node.lineno)
        key = node.slice
        if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
            raise Refused("dynamic_key", 'write the feature out, f["name"]', node.lineno)
        if key.value not in self.names:
            near = difflib.get_close_matches(key.value[:64], list(self.names), 3, 0.0)
            hint = f'no feature "{one_line(key.value, 40)}"; the closest: {", ".join(near)}'
            raise Refused("unknown_feature", hint, node.lineno)
        self.read.add(key.value)
        return _DYNAMIC

    def attribute(self, node: ast.Attribute) -> _Known:
        name = node.attr
        if isinstance(node.value, ast.Name) and node.value.id == "jnp":
            if name in CONSTANTS:
                return CONSTANTS[name]
            hint = f"jnp.{name[:40]} is not a value here; only jnp.pi and jnp.e are"
            raise Refused("forbidden_attribute", hint, node.lineno)
        self.base_of(node)
        hint = _METHOD_HINTS.get(name, "values have no attributes or methods here")
        raise Refused("forbidden_attribute", f".{name[:40]}: {hint}", node.lineno)

    def base_of(self, node: ast.Attribute):
        """Refuses a name that is not there, or what is wrong below an attribute."""
        value = node.value
        if isinstance(value, ast.Name) and value.id not in ("f", "jnp", *self.scope):
            self.name(value.id, value)
        elif not isinstance(value, ast.Name | ast.Constant):
            self.expression(value)

    def call(self, node: ast.Call) -> _Known:
        function = node.func
        if isinstance(function, ast.Name):
            if function.id not in BUILTINS:
                name = function.id[:40]
                hint = _CALL_HINTS.get(name, "there are no helper functions; use jnp.name(...)")
                raise Refused("forbidden_call", f"{name}(): {hint}", node.lineno)
            return self.builtin(node, function.id)
        if not isinstance(function, ast.Attribute):
            self.expression(function)  # its own fault is the better hint
            raise Refused("forbidden_call", "only jnp.name(...) can be called", node.lineno)
        name = function.attr
        if not (isinstance(function.value, ast.Name) and function.value.id == "jnp"):
            if (
                isinstance(function.value, ast.Attribute)
                and isinstance(function.value.value, ast.Name)
                and function.value.value.id == "jnp"
            ):
                whole = f"jnp.{function.value.attr[:30]}.{name[:30]}"
                raise Refused("forbidden_attribute", f"no {whole} here", node.lineno)
            self.base_of(function)
            hint = _METHOD_HINTS.get(name)
            if hint is None:
                known = name in _FUNCTIONS
                hint = f"write jnp.{name}(...)" if known else "values have no methods here"
            raise Refused("forbidden_attribute", f".{name[:40]}(): {hint}", node.lineno)
        if name not in _FUNCTIONS:
            near = difflib.get_close_matches(name[:40], FUNCTION_NAMES, 2, 0.7)
            hint = f"no jnp.{name[:40]} here" + (f"; there is {', '.join(near)}" if near else "")
            raise Refused("forbidden_attribute", hint, node.lineno)
        arguments = [self.argument(argument, name) for argument in node.args]
        for keyword in node.keywords:
            self.keyword(keyword, name)
        if name == "power":
            if len(arguments) != 2:
                raise Refused("forbidden_call", "write x ** e instead of jnp.power", node.lineno)
            _at(node, _check_exponent, arguments[1])
        return _DYNAMIC

    def builtin(self, node: ast.Call, name: str) -> _Known:
        arguments = node.args
        if len(arguments) == 1 and not node.keywords:
            argument = arguments[0]
            if name == "abs":
                self.expression(argument)
                return _DYNAMIC
            values = argument.func if isinstance(argument, ast.Call) else None
            if (
                isinstance(argument, ast.Call)
                and not argument.args
                and not argument.keywords
                and isinstance(values, ast.Attribute)
                and values.attr == "values"
                and isinstance(values.value, ast.Name)
                and isinstance(self.scope.get(values.value.id), tuple)
            ):
                return _DYNAMIC
            if isinstance(argument, ast.GeneratorExp | ast.ListComp):
                _unknown_syntax(argument)
        raise Refused("forbidden_call", f"{name}(): {_CALL_HINTS[name]}", node.lineno)

    def argument(self, node: ast.expr, name: str) -> _Known:
        if isinstance(node, ast.List | ast.Tuple):
            if name not in LIST_FUNCTIONS:
                hint = f"jnp.{name} takes no list; write jnp.{name}(jnp.array([...]))"
                raise Refused("forbidden_syntax", hint, node.lineno)
            for entry in node.elts:
                self.argument(entry, name)
            return _DYNAMIC
        return self.expression(node)

    def keyword(self, keyword: ast.keyword, name: str):
        line = keyword.value.lineno
        if keyword.arg is None:
            raise Refused("forbidden_syntax", _SYNTAX_HINTS[ast.Starred], line)
        if name == "clip":
            # Rewritten in the tree, so that the canonical source is jax's own.
            keyword.arg = OLD_CLIP_KEYWORDS.get(keyword.arg, keyword.arg)
        if keyword.arg not in KEYWORDS:
            hint = f"no keyword {keyword.arg[:40]} here; there is axis, keepdims, min, max"
            raise Refused("forbidden_call", hint, line)
        if keyword.arg == "dtype":
            if ast.unparse(keyword.value) != "jnp.float32":
                raise Refused("forbidden_call", "dtype can only be jnp.float32; drop it", line)
            return
        value = self.argument(keyword.value, name)
        if keyword.arg in CONSTANT_KEYWORDS and not isinstance(value, int):
            hint = f"{keyword.arg} must be a whole number or True or False"
            raise Refused("bad_constant", hint, line)


def _unknown_syntax(node: ast.AST) -> NoReturn:
    kind = type(node)
    hint = _SYNTAX_HINTS.get(kind, f"{kind.__name__} is not in the language; use assignments")
    raise Refused("forbidden_syntax", hint, _line(node))


def _check_constant(node: ast.Constant) -> int | float:
    value = node.value
    if isinstance(value, int | float) and abs(value) <= MAX_CONSTANT:
        return value
    if isinstance(value, int | float):
        hint = f"a number larger than {MAX_CONSTANT:g}; scale the feature instead"
    elif isinstance(value, str):
        hint = 'a string is only a name, in f["name"] or in the dict of terms'
    else:
        hint = "only real numbers are values"
    raise Refused("bad_constant", hint, node.lineno)


def _check_exponent(exponent: Any):
    if not _is_number(exponent) or not abs(exponent) <= MAX_EXPONENT:
        hint = f"an exponent must be a number of at most {MAX_EXPONENT}; use jnp.exp for others"
        raise Refused("bad_constant", hint)


def _at(node: ast.AST, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls `function`; a refusal without a line gets that of `node`."""
    try:
        return function(*arguments)
    except Refused as refused:
        if refused.line is not None:
            raise
        stage = refused.stage
        raise Refused(refused.reason, refused.hint, _line(node), stage=stage) from None


# The evaluator. It refuses what it does not know, whether or not the tree was checked.


def _terms_or_value(node: ast.expr, scope: Mapping[str, Any], features: Mapping[str, Array]) -> Any:
    if isinstance(node, ast.Dict):
        return {
            key.value: _value(value, scope, features)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    return _value(node, scope, features)


def _value(node: ast.expr, scope: Mapping[str, Any], features: Mapping[str, Array]) -> Any:
    if isinstance(node, ast.Constant):
        return _check_constant(node)
    if isinstance(node, ast.Name):
        return scope[node.id]
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, scope, features), _value(node.right, scope, features)
        return _guarded(node, _binary, node.op, left, right)
    if isinstance(node, ast.UnaryOp):
        return _guarded(node, _unary, node.op, _value(node.operand, scope, features))
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        left = _value(node.left, scope, features)
        right = _value(node.comparators[0], scope, features)
        return _guarded(node, _COMPARISONS[type(node.ops[0])], left, right)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        if isinstance(node.value, ast.Name) and node.value.id == "f":
            return features[str(node.slice.value)]
    if isinstance(node, ast.Attribute) and node.attr in CONSTANTS:
        return CONSTANTS[node.attr]
    if isinstance(node, ast.List | ast.Tuple):
        entries = [_value(entry, scope, features) for entry in node.elts]
        return tuple(entries) if isinstance(node, ast.Tuple) else entries
    if isinstance(node, ast.Call):
        return _call(node, scope, features)
    raise Refused("forbidden_syntax", "unknown expression", node.lineno)


def _call(node: ast.Call, scope: Mapping[str, Any], features: Mapping[str, Array]) -> Any:
    function = node.func
    if isinstance(function, ast.Name) and function.id == "abs":
        return _guarded(node, jnp.abs, _value(node.args[0], scope, features))
    if isinstance(function, ast.Name) and function.id == "sum":
        terms = node.args[0]
        assert isinstance(terms, ast.Call) and isinstance(terms.func, ast.Attribute)
        values = _value(terms.func.value, scope, features).values()
        return _guarded(node, functools.reduce, functools.partial(_binary, ast.Add()), values)
    if isinstance(function, ast.Attribute) and function.attr in _FUNCTIONS:
        arguments = [_value(argument, scope, features) for argument in node.args]
        keywords = {
            keyword.arg or "": jnp.float32
            if keyword.arg == "dtype"
            else _value(keyword.value, scope, features)
            for keyword in node.keywords
        }
        return _guarded(node, _FUNCTIONS[function.attr], *arguments, **keywords)
    raise Refused("forbidden_call", "unknown function", node.lineno)


def _target(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    raise Refused("mutation", _MUTATION, node.lineno)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_condition(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, Array) and value.dtype == jnp.bool_)


def _unary(kind: ast.unaryop, value: Any) -> Any:
    if isinstance(kind, ast.USub):
        return -value
    if isinstance(kind, ast.UAdd):
        return +value
    if isinstance(kind, ast.Invert):
        if isinstance(value, bool):
            return not value  # as jnp has it: ~True is -2 in Python
        if _is_condition(value):
            return ~value
        raise Refused("bad_dtype", "~ needs a comparison: ~(x > 0.5)")
    raise Refused("forbidden_syntax", "unknown operator")


def _binary(kind: ast.operator, left: Any, right: Any) -> Any:
    if type(kind) in _LOGIC:
        if not (_is_condition(left) and _is_condition(right)):
            raise Refused("bad_dtype", "& | ^ need comparisons: (a > 0.5) & (b > 0.5)")
        return _LOGIC[type(kind)](left, right)
    if isinstance(kind, ast.Pow):
        _check_exponent(right)
    function = _ARITHMETIC[type(kind)]
    if not (_is_number(left) and _is_number(right)):
        return function(left, right)
    # Both are at most MAX_CONSTANT, so that no large integer comes of it.
    try:
        value = function(left, right)
    except ArithmeticError:
        raise Refused("bad_constant", "a division by zero among the numbers") from None
    if not (isinstance(value, int | float) and abs(value) <= MAX_CONSTANT):
        hint = f"numbers that give more than {MAX_CONSTANT:g}, or no real number"
        raise Refused("bad_constant", hint)
    return value


def _guarded(node: ast.AST, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Calls `function`; what goes wrong becomes a refusal with its line."""
    try:
        return _at(node, functools.partial(function, **keywords), *arguments)
    except (Refused, MemoryError):
        raise
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ):
        raise Refused("not_traceable", _NOT_TRACEABLE, _line(node)) from None
    except Exception as error:
        if isinstance(error, TypeError) and "concrete" in str(error):  # of a shape
            raise Refused("not_traceable", _NOT_TRACEABLE, _line(node)) from None
        what = ast.unparse(node.func) if isinstance(node, ast.Call) else "operator"
        message = (str(error).splitlines() or [""])[0]
        hint = f"{what}: {type(error).__name__}: {one_line(message, 200)}"
        raise Refused("trace_error", hint, _line(node)) from None


def _scalar(value: Any, what: str, line: int) -> Array:
    if isinstance(value, list | dict):
        raise Refused("bad_shape", f"{what} must be one number", line, stage="trace")
    array = jnp.asarray(value)
    if array.dtype == jnp.bool_ or not jnp.issubdtype(array.dtype, jnp.number):
        raise Refused("bad_dtype", f"{what} is a condition; use jnp.where(c, 1.0, 0.0)", line)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise Refused("bad_dtype", f"{what} is complex", line)
    if array.shape != ():
        hint = f"{what} has shape {list(array.shape)} and must be one number; use jnp.sum(x)"
        raise Refused("bad_shape", hint, line)
    return array.astype(jnp.float32)
