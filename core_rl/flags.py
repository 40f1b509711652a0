"""One absl flag per leaf of a frozen nested dataclass, and the `main` of every experiment.

The dataclass is the only place where a name, type, default or help text is written:

    @dataclasses.dataclass(frozen=True)
    class Config:
        agent: QRSACConfig = QRSACConfig()
        seed: int = 0  # root of all random numbers

gives `--agent.critic_lr=1e-4` and `--seed=3`; the comment at the end of a field's line is its help.
Leaves are int, float, bool, str, Literal, Enum, `X | None` and tuples of these; in a tuple of
tuples the inner separator is a colon: `--tables=corner:0.25,straight:0.75`.

A config checks itself in `__post_init__` by `raise ValueError("n_step must be at least 1")`; when
the message begins with a field's name, the command line names the flag in full.
"""

import ast
import dataclasses
import difflib
import enum
import functools
import inspect
import io
import math
import signal
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NoReturn, TypeVar, Union

from absl import flags as absl_flags

from core_rl.errors import UsageError, UserError

Config = TypeVar("Config")

HELP_FLAGS = ("--help", "-help", "-h", "--helpshort", "--helpfull")
SEPARATORS = (",", ":")  # of a tuple, and of a tuple within a tuple
TRUE, FALSE = ("true", "t", "1", "yes"), ("false", "f", "0", "no")
NON_FINITE = ("nan", "inf", "-inf")  # how to_dict writes floats that JSON lacks


def define(
    default_config: Config, *, flag_values: absl_flags.FlagValues = absl_flags.FLAGS
) -> Callable[[], Config]:
    """Defines `--a.b` for every leaf and returns `build`, to be called when flags are parsed.

    `build()` returns a config of the same type; it raises UsageError where the config rejects the
    values. Raises TypeError for a field whose type has no text form.
    """
    for path, value, hint, comment in _leaves(default_config):
        describe(hint)
        flag = absl_flags.Flag(
            _Parser(hint), _Serializer(), path, value, comment, boolean=hint is bool
        )
        absl_flags.DEFINE_flag(flag, flag_values)
    return lambda: _build(default_config, "", lambda path: flag_values[path].value)


def parse(default_config: Config, arguments: list[str], positional: str = "") -> Config:
    """The config that `arguments` (without the program's name) ask for; raises UsageError.

    What is no flag goes into the tuple of texts that `positional` names, if one is named.
    """
    values = absl_flags.FlagValues()
    values.set_gnu_getopt(True)
    build = define(default_config, flag_values=values)
    try:
        rest = values(["", *arguments])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise UsageError(_unknown_flag(error.flagname, list(flatten(default_config)))) from None
    except (absl_flags.Error, ValueError) as error:  # absl's ValueError: --noflag=value
        raise UsageError(str(error).removeprefix("flag ").removeprefix("ERROR:: ")) from None
    if rest and not positional:
        raise UsageError(f"unexpected argument {rest[0]!r}: flags are written --name=value")
    if rest:
        named: tuple[str, ...] = values[positional].value or ()
        values[positional].value = (*named, *rest)
    return build()


def main(
    run: Callable[[Any], int | None],
    default_config: Any,
    *,
    argv: list[str] | None = None,
    positional: str = "",
) -> NoReturn:
    """Parses the command line, calls `run(config)` and exits with what it returns; `positional`
    as for `parse`.

    A UserError, or an error of the operating system, becomes one line on stderr and exit code 2
    (the command is wrong) or 1 (running it failed), Ctrl-C one line and 130. Every other exception
    keeps its traceback.
    """
    arguments = (sys.argv if argv is None else argv)[1:]
    if any(argument in HELP_FLAGS for argument in arguments):
        print(help_text(default_config, positional))
        sys.exit(0)
    try:
        sys.exit(run(parse(default_config, arguments, positional)))
    except UserError as error:
        hint = " (--help lists all flags)" if isinstance(error, UsageError) else ""
        _fail(f"{error}{hint}", error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 128 + signal.SIGINT)
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror}", UserError.exit_code)


def help_text(default_config: Any, positional: str = "") -> str:
    """The page of `--help`: the program's docstring, then all flags, grouped by their prefix."""
    program = sys.modules["__main__"]
    spec = getattr(program, "__spec__", None)
    command = f"python -m {spec.name.removesuffix('.__main__')}" if spec else "python FILE"
    rest = f" [{positional.upper()} ...]" if positional else ""
    lines = [f"usage: {command}{rest} [--name=value ...] [--flagfile=FILE]"]
    if program.__doc__:
        lines += ["", program.__doc__.strip()]
    groups: dict[str, list[tuple[str, str, str]]] = {"": []}
    for path, value, hint, comment in _leaves(default_config):
        row = (f"--{path}={format_text(value)}", describe(hint), comment)
        groups.setdefault(path.rpartition(".")[0], []).append(row)
    for name, rows in groups.items():
        if rows:
            lines += ["", f"{name or 'general'}:"]
            width = min(44, max(len(flag) for flag, _, _ in rows))
            for flag, kind, comment in rows:
                lines.append(f"  {flag:<{width}}  " + f"{comment} ({kind})".strip())
    return "\n".join(lines)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dict of what JSON can hold; `from_dict` is its exact inverse.

    Tuples become lists, enum members their names, and nan and infinities strings.
    """
    return {
        field.name: to_dict(value) if dataclasses.is_dataclass(value) else _encode(value)
        for field in dataclasses.fields(config)
        for value in [getattr(config, field.name)]
    }


def flatten(config: Any) -> dict[str, Any]:
    """Leaves by their dotted names, which are the names of the flags."""
    return {path: value for path, value, _, _ in _leaves(config)}


def from_dict(
    cls: type[Config],
    values: Mapping[str, Any],
    *,
    prefix: str = "",
    base: Config | None = None,
) -> Config:
    """Rebuilds a config from `to_dict`; raises UserError at unknown, missing or mistyped keys.

    Where there is a `base`, what is missing at any depth is as there: what was written before an
    option existed reads as with that option's value in `base`.
    """
    hints = _hints(cls)
    unknown = [name for name in values if name not in hints]
    if unknown:
        guess = difflib.get_close_matches(unknown[0], hints, 1)
        hint = f", did you mean {prefix}{guess[0]}?" if guess else ""
        raise UserError(f"{cls.__name__} has no field {prefix}{unknown[0]}{hint}")
    missing = [name for name in hints if name not in values]
    if missing and base is None:
        raise UserError(f"{cls.__name__} needs a value of {prefix}{missing[0]}")
    arguments = {}
    for name, hint in hints.items():
        if name not in values:
            arguments[name] = getattr(base, name)
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if not isinstance(values[name], Mapping):
                raise UserError(f"{prefix}{name} must be a mapping, got {values[name]!r}")
            deeper = None if base is None else getattr(base, name)
            arguments[name] = from_dict(hint, values[name], prefix=f"{prefix}{name}.", base=deeper)
        else:
            try:
                arguments[name] = _decode(values[name], hint)
            except ValueError as error:
                raise UserError(f"{prefix}{name}={values[name]!r}: {error}") from None
    return _construct(cls, arguments, prefix, "", UserError)


def format_text(value: Any, depth: int = 0) -> str:
    """The text that a flag takes for `value`; inverse of `parse_text`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, tuple):
        return SEPARATORS[depth].join(format_text(entry, depth + 1) for entry in value)
    return str(value)


def parse_text(text: str, hint: Any, depth: int = 0) -> Any:
    """A value of type `hint` from a flag's text; raises ValueError saying what is expected."""
    arguments = typing.get_args(hint)
    if _is_optional(hint):
        if text.lower() == "none":
            return None
        try:
            return parse_text(text, arguments[0], depth)
        except ValueError as error:
            raise ValueError(f"{error} or none") from None
    if typing.get_origin(hint) is tuple:
        inner = text.strip()
        if depth == 0 and inner[:1] + inner[-1:] in ("()", "[]"):
            inner = inner[1:-1]
        parts = [part.strip() for part in inner.split(SEPARATORS[depth])] if inner else []
        if len(parts) > 1 and not parts[-1]:
            parts.pop()  # a trailing comma, as Python writes a tuple of one
        hints = _entry_hints(hint, len(parts))
        return tuple(parse_text(*entry, depth + 1) for entry in zip(parts, hints, strict=True))
    choices = _choices(hint)
    if choices is not None:
        if text not in choices:
            raise ValueError(f"expected {describe(hint)}")
        return choices[text]
    if hint is bool:
        if text.lower() not in TRUE + FALSE:
            raise ValueError("expected true or false")
        return text.lower() in TRUE
    if hint is str:
        return text
    try:
        return _integer(text) if hint is int else float(text)
    except ValueError:
        raise ValueError(f"expected {describe(hint)}") from None


def describe(hint: Any, depth: int = 0) -> str:
    """What a flag of this type takes, for `--help`; raises TypeError if it cannot be a flag."""
    arguments = typing.get_args(hint)
    if _is_optional(hint):
        return f"{describe(arguments[0], depth)} or none"
    if typing.get_origin(hint) is tuple:
        kinds = ["..." if entry is Ellipsis else describe(entry, depth + 1) for entry in arguments]
        return SEPARATORS[depth].join(kinds)
    choices = _choices(hint)
    if choices is not None:
        return "|".join(choices)
    names = {int: "integer", float: "number", bool: "true|false", str: "text"}
    if hint not in names:
        raise TypeError(f"a flag cannot hold {hint}")
    return names[hint]


class _Parser(absl_flags.ArgumentParser):
    def __init__(self, hint: Any):
        self.hint = hint

    def parse(self, argument: Any) -> Any:
        return parse_text(argument, self.hint) if isinstance(argument, str) else argument

    def flag_type(self) -> str:
        return describe(self.hint)


class _Serializer(absl_flags.ArgumentSerializer):
    def serialize(self, value: Any) -> str:
        return format_text(value)


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Yields (dotted name, value, type, comment) of every field that is not a dataclass."""
    comments = _comments(type(config))
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, hint, comments.get(name, "")


def _build(default: Any, prefix: str, lookup: Callable[[str], Any]) -> Any:
    arguments = {}
    for name in _hints(type(default)):
        value = getattr(default, name)
        if dataclasses.is_dataclass(value):
            arguments[name] = _build(value, f"{prefix}{name}.", lookup)
        else:
            arguments[name] = lookup(f"{prefix}{name}")
    return _construct(type(default), arguments, prefix, "--", UsageError)


def _construct(
    cls: type, arguments: dict[str, Any], prefix: str, mark: str, error_type: type[UserError]
) -> Any:
    """Builds `cls`; a message that begins with a field's name is completed to its full name."""
    try:
        return cls(**arguments)
    except ValueError as error:
        message = str(error)
        field = message.split(" ", 1)[0].rstrip(":,").split(".", 1)[0]
        where = f"{mark}{prefix}" if field in arguments else prefix and f"{prefix[:-1]}: "
        raise error_type(f"{where}{message}") from None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


@functools.cache
def _comments(cls: type) -> dict[str, str]:
    """The comment behind each field of a dataclass; empty where the source is not at hand."""
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):
            continue
        by_line = {
            token.start[0]: token.string.lstrip("# ").strip()
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                comments[node.target.id] = by_line.get(node.end_lineno or node.lineno, "")
    return comments


def _unknown_flag(name: str, known: list[str]) -> str:
    by_leaf: dict[str, list[str]] = {}
    for path in known:
        by_leaf.setdefault(path.rpartition(".")[2], []).append(path)
    plain = name.removeprefix("no") if name not in known else name
    guesses = difflib.get_close_matches(name, known, 1, 0.75)
    if not guesses:
        leaves = difflib.get_close_matches(plain.rpartition(".")[2], by_leaf, 1, 0.75)
        guesses = [path for leaf in leaves for path in by_leaf[leaf]]
    hint = " or ".join(f"--{guess}" for guess in guesses[:3])
    return f"unknown flag --{name}" + (f", did you mean {hint}?" if hint else "")


def _encode(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_encode(entry) for entry in value]
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _decode(value: Any, hint: Any) -> Any:
    """A value of type `hint` from what `_encode` made of it; raises ValueError."""
    arguments = typing.get_args(hint)
    if _is_optional(hint):
        return None if value is None else _decode(value, arguments[0])
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError("expected a list")
        hints = _entry_hints(hint, len(value))
        return tuple(_decode(*entry) for entry in zip(value, hints, strict=True))
    choices = _choices(hint)
    if choices is not None:
        if str(value) not in choices:
            raise ValueError(f"expected {describe(hint)}")
        return choices[str(value)]
    if hint is float:
        if value in NON_FINITE or (isinstance(value, int | float) and not isinstance(value, bool)):
            return float(value)
    elif type(value) is hint:
        return value
    raise ValueError(f"expected {describe(hint)}")


def _is_optional(hint: Any) -> bool:
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    arguments = typing.get_args(hint)
    return is_union and len(arguments) == 2 and arguments[1] is type(None)


def _entry_hints(hint: Any, length: int) -> list[Any]:
    """The type of each of `length` entries of a tuple; raises ValueError if they do not fit."""
    arguments = typing.get_args(hint)
    if arguments[-1] is Ellipsis:
        return [arguments[0]] * length
    if len(arguments) != length:
        raise ValueError(f"expected {len(arguments)} values, got {length}")
    return list(arguments)


def _choices(hint: Any) -> dict[str, Any] | None:
    if typing.get_origin(hint) is Literal:
        return {str(choice): choice for choice in typing.get_args(hint)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return dict(hint.__members__)
    return None


def _integer(text: str) -> int:
    """Also takes 1e6, which is how people write a number of steps."""
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not value.is_integer():
            raise
        return int(value)


def _fail(message: str, exit_code: int) -> NoReturn:
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(exit_code)
