"""Heavy packages stay behind one file each, so that one file changes when they do.

import-linter cannot say this: it knows an external package only as a whole (`flax`, not
`flax.linen`). What it can say (the layers, the independence of projects) is in pyproject.toml.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ONLY_IN = {
    "wandb": "core_rl/tracking.py",
    "orbax": "core_rl/checkpoint.py",
    "flax.linen": "core_rl/networks.py",
    "openai": "projects/reward_llm/llm/openai_client.py",
    "cmaes": "projects/reward_llm/search/baselines.py",
    "casadi": "projects/sophy/collocation.py",
    "sweeps": "experiments/sweep.py",
    "submitit": "experiments/executors.py",
    "ray": "experiments/executors.py",
}


def modules_used(source: str) -> set[str]:
    """Dotted names that the source imports, wherever in it, or reaches through an attribute."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return names


def uses(source: str, package: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for name in modules_used(source))


@pytest.mark.parametrize("package", ONLY_IN)
def test_one_file_imports(package):
    files = [
        path
        for top in ("core_rl", "projects", "experiments")
        for path in (ROOT / top).rglob("*.py")
    ]
    users = {str(path.relative_to(ROOT)) for path in files if uses(path.read_text(), package)}
    assert users <= {ONLY_IN[package]}


@pytest.mark.parametrize(
    "source",
    [
        "import flax.linen as nn",
        "from flax import linen",
        "from flax.linen import Dense",
        "import flax\ny = flax.linen.Dense",
        "def f():\n    if True:\n        from flax.linen.module import Module",
    ],
)
def test_every_form_of_import_is_seen(source):
    assert uses(source, "flax.linen")


@pytest.mark.parametrize("source", ["from flax import struct", "import flaxen.linen", "x = linen"])
def test_other_packages_are_allowed(source):
    assert not uses(source, "flax.linen")
