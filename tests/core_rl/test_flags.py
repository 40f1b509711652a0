"""The command line, as generated from a dataclass: every type, every mistake, one line each."""

import dataclasses
import enum
import json
import math
from typing import Literal

import pytest
from absl import flags as absl_flags
from hypothesis import given
from hypothesis import strategies as st

from core_rl import flags
from core_rl.errors import UsageError, UserError


class Tyre(enum.Enum):
    SOFT = 1
    HARD = 2


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    critic_lr: float = 3e-4  # learning rate of the critics
    n_step: int = 7  # steps folded into one target
    hidden: tuple[int, ...] = (256, 256)  # widths

    def __post_init__(self):
        if self.n_step < 1:
            raise ValueError(f"n_step must be at least 1, got {self.n_step}")


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    circuit: str = "oval"  # built-in name or file
    speed: tuple[float, float] = (10.0, 20.0)  # [m/s] range at the start
    tables: tuple[tuple[str, float], ...] = (("corner", 0.25),)  # shares of a batch


@dataclasses.dataclass(frozen=True)
class Config:
    agent: AgentConfig = AgentConfig(n_step=5)
    env: EnvConfig = EnvConfig()
    seed: int = 0  # root of all random numbers
    learn: bool = True  # whether to learn at all
    mode: Literal["offline", "online"] = "offline"  # where records go
    tyre: Tyre = Tyre.SOFT  # compound
    limit: float | None = None  # [min] when to stop

    def __post_init__(self):
        if self.agent.n_step > 100:
            raise ValueError(f"agent.n_step must be at most 100, got {self.agent.n_step}")


def run(argument: str, *more: str) -> Config:
    return flags.parse(Config(), [argument, *more])


def message(*arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        flags.parse(Config(), list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_arguments_the_preset_is_built_unchanged():
    assert flags.parse(Config(), []) == Config()


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--seed=3", "seed", 3),
        ("--seed=1e6", "seed", 1_000_000),
        ("--seed=-2", "seed", -2),
        ("--learn=false", "learn", False),
        ("--learn=True", "learn", True),  # as W&B's agent writes it
        ("--nolearn", "learn", False),
        ("--mode=online", "mode", "online"),
        ("--tyre=HARD", "tyre", Tyre.HARD),
        ("--limit=2.5", "limit", 2.5),
        ("--limit=none", "limit", None),
        ("--agent.critic_lr=1e-4", "agent.critic_lr", 1e-4),
        ("--agent.hidden=64,32", "agent.hidden", (64, 32)),
        ("--agent.hidden=[64, 32]", "agent.hidden", (64, 32)),  # as W&B's agent writes it
        ("--agent.hidden=64", "agent.hidden", (64,)),
        ("--agent.hidden=(64,)", "agent.hidden", (64,)),
        ("--agent.hidden=", "agent.hidden", ()),
        ("--env.circuit=a,b:c", "env.circuit", "a,b:c"),
        ("--env.speed=1,2.5", "env.speed", (1.0, 2.5)),
        ("--env.tables=a:0.5,b:0.1", "env.tables", (("a", 0.5), ("b", 0.1))),
    ],
)
def test_a_flag_changes_its_leaf_and_no_other(argument, name, value):
    changed = flags.flatten(run(argument))
    assert changed == {**flags.flatten(Config()), name: value}
    assert type(changed[name]) is type(value)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--seed=2.5", "--seed=2.5: expected integer"),
        ("--seed=", "--seed=: expected integer"),
        ("--agent.critic_lr=fast", "--agent.critic_lr=fast: expected number"),
        ("--learn=maybe", "--learn=maybe: expected true or false"),
        ("--mode=of", "--mode=of: expected offline|online"),
        ("--tyre=MEDIUM", "--tyre=MEDIUM: expected SOFT|HARD"),
        ("--limit=soon", "--limit=soon: expected number or none"),
        ("--agent.hidden=64,,32", "--agent.hidden=64,,32: expected integer"),
        ("--env.speed=1", "--env.speed=1: expected 2 values, got 1"),
        ("--env.tables=corner", "--env.tables=corner: expected 2 values, got 1"),
        ("--agent.n_step=0", "--agent.n_step must be at least 1, got 0"),
        ("--agent.n_step=101", "--agent.n_step must be at most 100, got 101"),
        ("--sed=1", "unknown flag --sed, did you mean --seed?"),
        ("--critic_lr=1", "unknown flag --critic_lr, did you mean --agent.critic_lr?"),
        ("--agent.n_steps=1", "unknown flag --agent.n_steps, did you mean --agent.n_step?"),
        ("--frobnicate=1", "unknown flag --frobnicate"),
        ("oops", "unexpected argument 'oops': flags are written --name=value"),
        ("--seed", "Missing value for flag --seed"),
    ],
)
def test_a_mistake_is_named_in_one_line(argument, expected):
    assert message(argument) == expected


def test_flagfile_is_read_in_place_of_its_lines(tmp_path):
    path = tmp_path / "flags.txt"
    path.write_text("# a comment\n--seed=4\n--agent.n_step=2\n")
    config = run(f"--flagfile={path}", "--seed=5")
    assert (config.seed, config.agent.n_step) == (5, 2)
    assert str(tmp_path / "none") in message(f"--flagfile={tmp_path / 'none'}")


def test_define_leaves_parsing_to_absl():
    values = absl_flags.FlagValues()
    build = flags.define(Config(), flag_values=values)
    values(["program", "--seed=9"])
    assert build() == Config(seed=9)
    assert values["agent.n_step"].default == 5
    assert values["agent.n_step"].help == "steps folded into one target"


def test_a_field_without_a_text_form_is_refused_when_flags_are_defined():
    @dataclasses.dataclass(frozen=True)
    class Bad:
        table: dict[str, float] = dataclasses.field(default_factory=dict)

    with pytest.raises(TypeError, match="dict"):
        flags.parse(Bad(), [])


def test_help_shows_every_flag_with_default_type_and_comment():
    text = flags.help_text(Config())
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "--agent.n_step=5 steps folded into one target (integer)" in lines
    assert "--env.speed=10.0,20.0 [m/s] range at the start (number,number)" in lines
    assert "--env.tables=corner:0.25 shares of a batch (text:number,...)" in lines
    assert "--mode=offline where records go (offline|online)" in lines
    assert "--limit=none [min] when to stop (number or none)" in lines
    for name in flags.flatten(Config()):
        assert f"--{name}=" in text
    assert lines.index("general:") < lines.index("agent:") < lines.index("env:")


def outcome(run, *arguments: str) -> object:
    with pytest.raises(SystemExit) as caught:
        flags.main(run, Config(), argv=["program", *arguments])
    return caught.value.code


def test_main_hands_over_the_config_and_exits_with_its_result(capsys):
    seen = []
    assert outcome(seen.append, "--seed=3") is None
    assert outcome(lambda config: 143) == 143
    assert seen == [Config(seed=3)]
    assert outcome(seen.append, "--help") == 0
    assert "--agent.critic_lr=0.0003" in capsys.readouterr().out
    assert len(seen) == 1


def test_main_prints_errors_for_people_in_one_line(capsys):
    def refuse(config):
        raise UserError("the track\nis closed")

    def missing(config):
        open("/nowhere/at/all")

    assert outcome(refuse, "--seed=x") == 2
    assert outcome(refuse) == 1
    assert outcome(missing) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: --seed=x: expected integer (--help lists all flags)",
        "error: the track is closed",
        "error: /nowhere/at/all: No such file or directory",
    ]


def test_main_ends_in_one_line_on_ctrl_c(capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    assert outcome(interrupted) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_main_leaves_other_errors_their_traceback():
    def broken(config):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        flags.main(broken, Config(), argv=["program"])


def test_dict_round_trip_through_json():
    config = Config(
        agent=AgentConfig(critic_lr=0.1 + 0.2, hidden=()),
        tyre=Tyre.HARD,
        limit=math.inf,
        env=EnvConfig(tables=(("a", 1.0), ("b", 2.0))),
    )
    text = json.dumps(flags.to_dict(config), allow_nan=False)
    assert flags.from_dict(Config, json.loads(text)) == config


def changed(**values):
    return {**flags.to_dict(Config()), **values}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (changed(sed=1), "Config has no field sed, did you mean seed?"),
        ({"seed": 0}, "Config needs a value of agent"),
        (changed(seed="1"), "seed='1': expected integer"),
        (changed(seed=True), "seed=True: expected integer"),
        (changed(tyre="MEDIUM"), "tyre='MEDIUM': expected SOFT|HARD"),
        (changed(agent=3), "agent must be a mapping, got 3"),
        (
            changed(agent={"critic_lr": 1.0, "n_step": 1}),
            "AgentConfig needs a value of agent.hidden",
        ),
        (
            changed(agent={"critic_lr": 1.0, "n_step": 0, "hidden": [1]}),
            "agent.n_step must be at least 1, got 0",
        ),
        (
            changed(env={"circuit": "a", "speed": [1.0], "tables": []}),
            "env.speed=[1.0]: expected 2 values, got 1",
        ),
    ],
)
def test_from_dict_names_what_does_not_fit(values, expected):
    with pytest.raises(UserError) as caught:
        flags.from_dict(Config, values)
    assert str(caught.value) == expected


words = st.text(st.characters(exclude_characters=",:()[]", categories=["L", "N", "P"]), min_size=1)


@given(
    st.tuples(
        st.integers(),
        st.none() | st.floats(allow_nan=False),
        st.lists(st.tuples(words, st.floats(allow_nan=False))).map(tuple),
    )
)
def test_any_value_survives_its_text(values):
    hints = (int, float | None, tuple[tuple[str, float], ...])
    for value, hint in zip(values, hints, strict=True):
        assert flags.parse_text(flags.format_text(value), hint) == value


def test_from_dict_takes_what_is_missing_from_a_base_at_any_depth():
    values = {"seed": 4, "agent": {"n_step": 9}}
    base = Config(agent=AgentConfig(critic_lr=1e-5), learn=False)
    expected = dataclasses.replace(base, seed=4, agent=AgentConfig(critic_lr=1e-5, n_step=9))
    assert flags.from_dict(Config, values, base=base) == expected
    with pytest.raises(UserError, match=r"no field agent\.n_stpe"):
        flags.from_dict(Config, {"agent": {"n_stpe": 9}}, base=base)
