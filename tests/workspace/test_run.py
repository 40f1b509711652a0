"""The launcher `./run`, against a uv and a Python that only write down how they were called."""

import ast
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("train", "demo", "test", "lint", "bench", "reproduce", "python", "lock")
INSTALL_LINE = "run: making the environment from requirements.lock.txt (about 1 GB) ...\n"

# Writes what it was called with, one line each; FAIL names a tool (`-m FAIL`) that shall fail.
FAKE_PYTHON = """#!/bin/sh
echo "$*" >> {log}
printf 'cwd=%s\\n' "$PWD"
printf 'argument=%s\\n' "$@"
printf 'path=%s\\ncache=%s\\n' "$PYTHONPATH" "$JAX_COMPILATION_CACHE_DIR"
[ "$2" = "$FAIL" ] && exit 1
exit 0
"""

# `TOOL ... venv ... DIRECTORY` makes a fake environment; FAIL_UV is the first word of what fails.
FAKE_INSTALLER = """#!/bin/sh
echo "$*" >> {log}
[ "$1" = "$FAIL_UV" ] && {{ printf 'note\\nerror: no\\n  network\\n'; exit 1; }}
for last; do :; done
case "$*" in *venv*--clear*)
    /bin/rm -rf "$last"; /bin/mkdir -p "$last/bin"; /bin/cp {python} "$last/bin/python"
esac
"""


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def repo(tmp_path):
    """A repository of nothing but `run` and a lock, a PATH of nothing but python3 and a fake uv."""
    root, bin, elsewhere = tmp_path / "repo", tmp_path / "bin", tmp_path / "elsewhere"
    for directory in (root, bin, elsewhere):
        directory.mkdir()
    executable(root / "run", (ROOT / "run").read_text())
    lock = root / "requirements.lock.txt"
    lock.write_text("jaxlib==1.2.3\n")
    (bin / "python3").symlink_to(Path(sys.executable).resolve())
    log = tmp_path / "log"
    python = executable(tmp_path / "fake_python", FAKE_PYTHON.format(log=log))
    installer = FAKE_INSTALLER.format(log=log, python=python)
    uv = executable(bin / "uv", installer)
    environment = {"PATH": str(bin), "HOME": str(tmp_path / "home"), "FAIL": "nothing"}

    def run(*arguments, before=None, **variables):
        """Run it from `elsewhere`; `before` is Python that the launcher executes first."""
        command = [root / "run", *arguments]
        if before:
            start = f"import runpy, sys\n{before}\nsys.argv = sys.argv[1:]\n"
            start += "runpy.run_path(sys.argv[0], run_name='__main__')"
            command = [bin / "python3", "-c", start, *command]
        return subprocess.run(
            command, cwd=elsewhere, env=environment | variables, capture_output=True, text=True
        )

    return SimpleNamespace(
        root=root,
        lock=lock,
        bin=bin,
        elsewhere=elsewhere,
        environment=environment,
        run=run,
        uv=uv,
        installer=installer,
        python=python,
        stamp=root / ".venv" / "made-from",
        installs=lambda: log.read_text().count("--require-hashes") if log.exists() else 0,
        log=log,
    )


def arguments(finished) -> list[str]:
    assert finished.returncode == 0, finished.stderr
    return re.findall("^argument=(.*)$", finished.stdout, re.MULTILINE)


def value(finished, name) -> str:
    return re.search(f"^{name}=(.*)$", finished.stdout, re.MULTILINE)[1]


def assert_one_line(finished, *parts):
    """One line (after the one that announces an installation), and no traceback."""
    assert finished.returncode == 2
    assert finished.stdout == ""
    line = finished.stderr.removeprefix(INSTALL_LINE)
    assert line.startswith("run: ") and line.count("\n") == 1, finished.stderr
    for part in parts:
        assert part in line


@pytest.mark.parametrize("ask", [[], ["--help"], ["help"]])
def test_tasks_are_listed(repo, ask):
    finished = repo.run(*ask)
    assert finished.returncode == 0
    assert re.findall("^  ([a-z]+)", finished.stdout, re.MULTILINE) == list(TASKS)
    assert not (repo.root / ".venv").exists()


def test_unknown_task(repo):
    assert_one_line(repo.run("trian"), "unknown task 'trian'", *TASKS)


def test_unknown_experiment(repo):
    assert_one_line(repo.run("train", "sofy", "--seed=1"), "unknown experiment 'sofy'", "sophy")
    assert repo.installs() == 0


@pytest.mark.parametrize("words", [[], ["sophy"]])
@pytest.mark.parametrize("flags", [[], ["--seed=1", "--workdir", "a b", "sophy"]])
def test_train(repo, words, flags):
    expected = ["-P", "-m", "experiments.sophy_time_trial", *flags]
    assert arguments(repo.run("train", *words, *flags)) == expected


@pytest.mark.parametrize(
    ("task", "command"),
    [
        ("demo", ["-P", "-m", "experiments.sophy_demo"]),
        ("bench", ["-P", "-m", "experiments.bench"]),
        ("test", ["-m", "pytest"]),
        ("python", []),
    ],
)
def test_arguments_are_passed_on(repo, task, command):
    assert arguments(repo.run(task, "--json=x y", "-h")) == [*command, "--json=x y", "-h"]


@pytest.mark.parametrize("task", ["train", "demo", "bench", "reproduce", "python"])
def test_the_users_directory_is_kept(repo, task):
    finished = repo.run(task, PYTHONPATH="/theirs")
    assert value(finished, "cwd") == str(repo.elsewhere)
    assert value(finished, "path") == f"{repo.root}:/theirs"


def test_tests_run_in_the_repository(repo):
    assert value(repo.run("test"), "cwd") == str(repo.root)


def test_a_link_to_run_finds_its_repository(repo):
    link = repo.elsewhere / "link"
    link.symlink_to(repo.root / "run")
    finished = subprocess.run(
        [link, "python"], env=repo.environment, capture_output=True, text=True
    )
    assert value(finished, "path") == str(repo.root)


def test_it_installs_once(repo):
    first, second = repo.run("python"), repo.run("python")
    assert (first.stderr, second.stderr) == (INSTALL_LINE, "")
    assert repo.installs() == 1


def test_a_changed_lock_installs_again(repo):
    repo.run("python")
    repo.lock.write_text("jaxlib==1.2.4\n")
    assert repo.run("python").stderr == INSTALL_LINE
    assert repo.installs() == 2


def test_another_interpreter_installs_again(repo):
    repo.run("python")
    inside = repo.root / ".venv" / "bin" / "python"
    inside.unlink()
    inside.symlink_to(repo.python)
    assert repo.run("python").stderr == INSTALL_LINE


@pytest.mark.parametrize("step", ["venv", "pip"])
def test_a_failed_installation_is_one_line_and_is_repeated(repo, step):
    repo.run("python")
    repo.lock.write_text("jaxlib==1.2.4\n")
    assert_one_line(repo.run("python", FAIL_UV=step), ": error: no network\n")
    # also with the old lock: what a broken-off installation leaves is no environment
    repo.lock.write_text("jaxlib==1.2.3\n")
    assert repo.run("python").stderr == INSTALL_LINE


def test_the_lock_is_installed_with_its_hashes_and_without_building(repo):
    repo.run("python")
    _version, make, fill, _task = repo.log.read_text().splitlines()
    base = Path(sys.executable).resolve()
    assert re.fullmatch(f"venv .*--python (.*) {repo.root}/.venv", make)
    assert Path(re.search("--python (.*) /", make)[1]).resolve() == base
    assert fill.startswith("pip install") and "--no-build" in fill
    assert fill.endswith(f"--require-hashes -r {repo.lock}")


def test_without_uv_venv_and_pip_are_used(repo):
    repo.uv.unlink()
    base = executable(repo.bin / "base", repo.installer)
    finished = repo.run("python", "x", before=f"sys._base_executable = '{base}'")
    assert finished.returncode == 0, finished.stderr
    pip = f"pip install --no-input --only-binary :all: --require-hashes -r {repo.lock}"
    calls = repo.log.read_text().splitlines()
    assert calls == [f"-I -m venv --clear {repo.root}/.venv", f"-I -m {pip}", "x"]
    assert repo.stamp.exists()


def test_a_pip_that_fails_is_one_line(repo):
    repo.uv.unlink()
    base = executable(repo.bin / "base", repo.installer)
    failing = (
        "#!/bin/sh\necho WARNING: connection broken by X\necho ERROR: a\necho ERROR: b\nexit 1"
    )
    executable(repo.python, failing)
    finished = repo.run("python", before=f"sys._base_executable = '{base}'")
    assert_one_line(finished, ": ERROR: b WARNING: connection broken by X\n")
    assert not repo.stamp.exists()


def test_a_uv_that_does_not_work_counts_as_none(repo):
    executable(repo.uv, "#!/bin/sh\nexit 127\n")
    base = executable(repo.bin / "base", repo.installer)
    assert repo.run("python", before=f"sys._base_executable = '{base}'").returncode == 0
    assert "-m venv" in repo.log.read_text()


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_missing_venv_module_names_the_package(repo, module):
    repo.uv.unlink()
    finished = repo.run("python", before=f"sys.modules['{module}'] = None")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert_one_line(finished, f"no module {module}:", f"apt install python{version}-venv")


def test_a_missing_lock_file(repo):
    repo.lock.unlink()
    assert_one_line(repo.run("train"), "requirements.lock.txt", "No such file", "./run lock")


def test_a_repository_that_cannot_be_written(repo):
    (repo.root / ".venv.lock").mkdir()  # also for root, whom permissions do not stop
    assert_one_line(repo.run("train"), "cannot write", f"{repo.root}/.venv")


def test_a_second_process_waits_and_then_uses_what_the_first_made(repo):
    with open(repo.root / ".venv.lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        second = subprocess.Popen(
            [repo.root / "run", "python", "x"],
            env=repo.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert "waiting for another" in second.stderr.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(timeout=0.5)
        inside = repo.root / ".venv" / "bin" / "python"
        inside.parent.mkdir(parents=True)
        executable(inside, repo.python.read_text())
        lock_hash = hashlib.sha256(repo.lock.read_bytes()).hexdigest()
        repo.stamp.write_text(f"{lock_hash}\n{inside}\n")
    out, err = second.communicate()
    assert (second.returncode, err) == (0, "")
    assert "argument=x\n" in out
    assert repo.installs() == 0


def test_an_old_python_is_one_line(repo):
    finished = repo.run("train", before="sys.version_info = (3, 6, 15)")
    assert_one_line(finished, "Python 3.11 or newer is needed", "this is 3.6", "python3.13")


def test_an_old_python_hands_over_to_a_newer_one(repo):
    executable(repo.bin / "python3.11", "#!/bin/sh\nexit 127\n")  # a version manager's empty shim
    executable(repo.bin / "python3.12", repo.python.read_text())
    finished = repo.run("train", "--seed=1", before="sys.version_info = (3, 6, 15)")
    assert arguments(finished) == [str(repo.root / "run"), "train", "--seed=1"]


def test_an_old_python_can_parse_run():
    ast.parse((ROOT / "run").read_text(), feature_version=(3, 7))  # ast knows none older


def test_the_compilation_cache_is_per_cpu_and_jaxlib(repo):
    finished = repo.run("python")
    home = repo.environment["HOME"]
    cache = value(finished, "cache")
    assert re.fullmatch(f"{home}/.cache/champion-control/jax-[0-9a-f]{{12}}-1.2.3", cache)
    assert Path(cache).is_dir()


def test_the_users_compilation_cache_is_kept(repo):
    assert value(repo.run("python", JAX_COMPILATION_CACHE_DIR="/x"), "cache") == "/x"


def test_half_written_entries_of_the_compilation_cache_are_removed(repo):
    """With one of them JAX stores nothing any more, and only warns."""
    cache = Path(value(repo.run("python"), "cache"))
    for name in ("whole-cache", "whole-atime", "old-cache", "new-cache"):
        (cache / name).write_bytes(b"")
    os.utime(cache / "old-cache", (0, 0))
    repo.run("python")
    assert {path.name for path in cache.iterdir()} == {"whole-cache", "whole-atime", "new-cache"}


@pytest.mark.parametrize("failing", ["ruff", "pyright", None])
def test_lint_runs_all_checks(repo, failing):
    finished = repo.run("lint", **({"FAIL": failing} if failing else {}))
    assert finished.returncode == (1 if failing else 0)
    lines = re.findall(r"^(\S+(?: \S+)?) +(ok|FAILED)$", finished.stdout, re.MULTILINE)
    names = ["ruff check", "ruff format", "pyright", "lint-imports"]
    expected = ["FAILED" if failing and name.startswith(failing) else "ok" for name in names]
    assert lines == list(zip(names, expected, strict=True))


def test_lint_takes_no_arguments(repo):
    assert_one_line(repo.run("lint", "--fix"), "--fix")


def test_lock_calls_uv(repo):
    assert repo.run("lock", "--upgrade").returncode == 0
    call = repo.log.read_text().splitlines()[-1]
    assert call.startswith("pip compile pyproject.toml") and call.endswith(" --upgrade")
    for flag in ("--universal", "--generate-hashes", "--group dev", "--python-version 3.11"):
        assert flag in call


def test_lock_without_uv(repo):
    repo.uv.unlink()
    assert_one_line(repo.run("lock"), "uv")


def test_the_lock_is_exact_hashed_and_without_addresses():
    text = (ROOT / "requirements.lock.txt").read_text()
    assert "./run lock" in text.splitlines()[1]
    assert "://" not in text and "--index-url" not in text
    entries = re.split(r"\n(?=[a-z])", text[text.index("\nabsl-py==") + 1 :])
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+==\S+ .*\\\n    --hash=sha256:[0-9a-f]{64}", entry), entry


def test_the_lock_holds_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    lock = (ROOT / "requirements.lock.txt").read_text()
    locked = set(re.findall("^([a-z0-9.-]+)==", lock, re.MULTILINE))
    assert {re.match("[a-z0-9-]+", line)[0] for line in wanted} <= locked
