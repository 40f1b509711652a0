"""Policy bundles: a trained policy as a small directory that runs without the code that trained it.

    policy.json   what goes in and comes out, configuration, record, versions, checksums
    params.npz    weights and observation statistics by name, float32, no pickle
    policy.bin    `(params, obs) -> action` exported by `jax.export`, for cpu and cuda, any batch
    golden.npz    observations and the actions that they must give

It is kept apart from `core_rl.checkpoint`, since whoever runs a policy needs neither orbax nor the
state of a training. Exported matrix products run at full float32 precision, so that a policy acts
the same on every machine; the networks are too small for that to cost anything.
"""

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from core_rl.errors import UserError, storage_errors
from core_rl.tracking import write_json

MANIFEST, PARAMS, PROGRAM, GOLDEN = "policy.json", "params.npz", "policy.bin", "golden.npz"
FORMAT = "core_rl policy bundle"
FORMAT_VERSION = 1
REQUIRED = ("observation", "action", "platforms", "versions", "record", "extra", "files")
PLATFORMS = ("cpu", "cuda")
TOLERANCE = 1e-4  # between a golden action and the one computed here; machines round differently


class PolicyError(UserError):
    """A bundle is missing, damaged or of another version, or an observation does not fit it."""


class Policy:
    """A loaded bundle.

    `apply(params, obs)` is pure: it works under jit, vmap and scan, but has no gradient. `params`
    is a flat dict of arrays. `manifest` is the content of `policy.json`.
    """

    def __init__(self, manifest: dict[str, Any], params: dict[str, jax.Array], program: Any):
        self.manifest = manifest
        self.params = params
        self._call = _batchable(program.call)
        self._jitted = jax.jit(self.apply)

    def act(self, obs: Mapping[str, Any]) -> jax.Array:
        """Action `[..., A]` for entries `[..., *shape]`; any leading axes, or none.

        Entries that the policy does not read are ignored. Raises PolicyError if one is missing or
        has another shape.
        """
        return self._jitted(self.params, self._check(obs))

    def apply(self, params: dict[str, jax.Array], obs: Mapping[str, Any]) -> jax.Array:
        """`act` with given parameters, as a pure function."""
        entries = self._check(obs)
        name, entry = next(iter(entries.items()))
        lead = entry.shape[: entry.ndim - len(self.manifest["observation"][name]["shape"])]
        batch = {
            name: jnp.reshape(
                jnp.asarray(entry, self.manifest["observation"][name]["dtype"]),
                (-1, *self.manifest["observation"][name]["shape"]),
            )
            for name, entry in entries.items()
        }
        action = self._call(params, batch)
        return jnp.reshape(action, (*lead, *action.shape[1:]))

    def _check(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """The entries that the policy reads; they must agree in their leading axes."""
        entries, leads = {}, set()
        for name, spec in self.manifest["observation"].items():
            if name not in obs:
                raise PolicyError(f"the policy reads {name!r}, which is not among {sorted(obs)}")
            entry = obs[name] if hasattr(obs[name], "shape") else np.asarray(obs[name])
            num_leading = entry.ndim - len(spec["shape"])
            if num_leading < 0 or list(entry.shape[num_leading:]) != spec["shape"]:
                raise PolicyError(
                    f"the policy reads {name!r} of shape {spec['shape']} behind any leading axes, "
                    f"got {list(entry.shape)}"
                )
            leads.add(entry.shape[:num_leading])
            entries[name] = entry
        if len(leads) > 1:
            raise PolicyError(f"observation entries differ in their leading axes: {sorted(leads)}")
        return entries


def save_policy(
    directory: str | os.PathLike[str],
    *,
    apply: Callable[[Any, dict[str, jax.Array]], jax.Array],
    params: Any,
    example_obs: Mapping[str, Any],
    record: dict[str, Any],
    observation_spec: Mapping[str, dict[str, Any]] | None = None,
    action_spec: dict[str, Any] | None = None,
    network_config: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    num_golden: int = 16,
) -> None:
    """Writes a bundle, tries it, and only then puts it in the place of an older one.

    Args:
      directory: of the bundle; an older bundle is replaced, anything else is left alone.
      apply: `(params, obs[B]) -> action[B, A]`.
      params: pytree of arrays: weights and observation statistics.
      example_obs: the entries that `apply` reads, without batch axis; golden observations are
        normal draws around it.
      record: JSON-able; where the policy comes from.
      observation_spec, action_spec: JSON-able; names, units, limits, added to shape and type of
        each observation entry and of the action.
      network_config, extra: JSON-able.

    Raises StorageError, or PolicyError if `directory` is something else or the bundle fails.
    """
    directory = Path(directory)
    if directory.exists() and not (directory / MANIFEST).exists():
        raise PolicyError(f"{directory} exists and is not a policy bundle")
    obs_types = {
        name: jax.ShapeDtypeStruct(np.shape(entry), jnp.asarray(entry).dtype)
        for name, entry in example_obs.items()
    }
    unknown = sorted(set(observation_spec or {}) - set(obs_types))
    if unknown:
        raise PolicyError(f"observation_spec names {unknown[0]!r}, which example_obs lacks")

    flat = _named_leaves(params)
    structure = jax.tree.structure(params)

    def apply_flat(flat_params: dict[str, jax.Array], obs: dict[str, jax.Array]) -> jax.Array:
        return apply(jax.tree.unflatten(structure, [flat_params[name] for name in flat]), obs)

    golden_obs = _golden_obs(example_obs, num_golden)
    (batch,) = export.symbolic_shape("batch")
    batched_types = {
        name: jax.ShapeDtypeStruct((batch, *kind.shape), kind.dtype)
        for name, kind in obs_types.items()
    }
    with jax.default_matmul_precision("highest"), _without_source_paths():
        golden_action = np.asarray(jax.jit(apply)(params, golden_obs))
        program = export.export(jax.jit(apply_flat), platforms=PLATFORMS)(flat, batched_types)

    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "observation": {
            name: {
                **(observation_spec or {}).get(name, {}),
                "shape": list(kind.shape),
                "dtype": str(kind.dtype),
            }
            for name, kind in obs_types.items()
        },
        "action": {
            **(action_spec or {}),
            "shape": list(golden_action.shape[1:]),
            "dtype": str(golden_action.dtype),
        },
        "num_params": sum(leaf.size for leaf in flat.values()),
        "network": network_config or {},
        "platforms": list(PLATFORMS),
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "record": record,
        "extra": extra or {},
    }
    with storage_errors(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Beside its final place, so that the moves below are renames within one file system.
        with tempfile.TemporaryDirectory(
            dir=directory.parent, prefix=f".{directory.name}."
        ) as temporary:
            fresh = Path(temporary) / "fresh"
            fresh.mkdir()
            _write_npz(fresh / PARAMS, flat)
            golden = {f"obs/{name}": entry for name, entry in golden_obs.items()}
            _write_npz(fresh / GOLDEN, {**golden, "action": golden_action})
            (fresh / PROGRAM).write_bytes(program.serialize())
            manifest["files"] = {name: _sha256(fresh / name) for name in (PARAMS, GOLDEN, PROGRAM)}
            write_json(fresh / MANIFEST, manifest)
            load_policy(fresh)
            if directory.exists():
                directory.rename(Path(temporary) / "old")
            fresh.rename(directory)


@contextlib.contextmanager
def _without_source_paths():
    """A bundle is given away: the program must not name the directories of who trained it."""
    before = jax.config.jax_traceback_in_locations_limit  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def load_policy(directory: str | os.PathLike[str]) -> Policy:
    """Reads a bundle and checks its format, its checksums and its golden pairs.

    Raises PolicyError in one line if it is missing, damaged, or does not run here.
    """
    directory = Path(directory)
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise PolicyError(f"no policy bundle in {directory}: {MANIFEST} is missing") from None
    except (OSError, ValueError) as error:
        raise PolicyError(f"cannot read {directory / MANIFEST}: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise PolicyError(f"{directory / MANIFEST} does not describe a policy bundle")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise PolicyError(
            f"{directory} is a policy bundle of format {version}, "
            f"this program reads format {FORMAT_VERSION}"
        )
    missing = [name for name in REQUIRED if name not in manifest]
    if missing:
        raise PolicyError(f"{directory / MANIFEST} lacks {missing[0]!r}")
    for name, checksum in manifest["files"].items():
        if not (directory / name).is_file():
            raise PolicyError(f"the policy bundle {directory} is incomplete: {name} is missing")
        if _sha256(directory / name) != checksum:
            raise PolicyError(
                f"the policy bundle {directory} is damaged: {name} differs from its checksum"
            )
    here = export.default_export_platform()
    if here not in manifest["platforms"]:
        raise PolicyError(f"{directory} runs on {', '.join(manifest['platforms'])}, not on {here}")
    params = {name: jnp.asarray(leaf) for name, leaf in _read_npz(directory / PARAMS).items()}
    golden = _read_npz(directory / GOLDEN)
    expected = golden.pop("action")
    try:
        program = export.deserialize(bytearray((directory / PROGRAM).read_bytes()))
        policy = Policy(manifest, params, program)
        action = policy.act({name.removeprefix("obs/"): entry for name, entry in golden.items()})
        error = float(np.max(np.abs(np.asarray(action) - expected)))
    except (ValueError, RuntimeError, NotImplementedError) as failure:
        reason = " ".join(str(failure).split())[:200]
        made_by = manifest["versions"]["jax"]
        raise PolicyError(
            f"{directory / PROGRAM} (jax {made_by}) does not run in jax {jax.__version__}: {reason}"
        ) from failure
    if not error <= TOLERANCE:
        raise PolicyError(
            f"the policy bundle {directory} acts differently here: a golden action is off by "
            f"{error:.1e}, more than {TOLERANCE:.0e}"
        )
    return policy


def restore_params(policy: Policy, template: Any) -> Any:
    """A bundle's parameters as the pytree that was saved, by the names of its leaves.

    Args:
      template: pytree of the same structure, arrays or their shapes.

    Raises PolicyError when a leaf is missing or has another shape.
    """
    leaves = []
    for name, leaf in _named(template):
        if name not in policy.params:
            raise PolicyError(f"the policy bundle has no parameter {name!r}")
        if policy.params[name].shape != tuple(leaf.shape):
            raise PolicyError(
                f"the policy bundle's {name!r} has the shape {list(policy.params[name].shape)}, "
                f"{list(leaf.shape)} is needed"
            )
        leaves.append(policy.params[name])
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _batchable(call: Callable[[Any, Any], jax.Array]) -> Callable[[Any, Any], jax.Array]:
    """Teaches an exported function vmap, by folding the mapped axis into its batch axis."""

    @jax.custom_batching.custom_vmap
    def batchable(params, obs):
        return call(params, obs)

    @batchable.def_vmap
    def rule(axis_size, in_batched, params, obs):
        params_batched, obs_batched = in_batched
        if any(jax.tree.leaves(params_batched)):  # each parameter set needs a call of its own
            params, obs = jax.tree.map(
                lambda leaf, batched: leaf if batched else jnp.stack([leaf] * axis_size),
                (params, obs),
                (params_batched, obs_batched),
            )
            return jax.lax.map(lambda pair: batchable(*pair), (params, obs)), True
        folded = {
            name: jnp.reshape(
                entry if obs_batched[name] else jnp.stack([entry] * axis_size),
                (-1, *entry.shape[1 + obs_batched[name] :]),
            )
            for name, entry in obs.items()
        }
        action = batchable(params, folded)
        return jnp.reshape(action, (axis_size, -1, *action.shape[1:])), True

    return batchable


def _named(params: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def _named_leaves(params: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in _named(params)}


def _golden_obs(example_obs: Mapping[str, Any], num_golden: int) -> dict[str, np.ndarray]:
    """`num_golden` observations around the example; entries of integers repeat it."""
    generator = np.random.default_rng(0)
    batch = {}
    for name, entry in sorted(example_obs.items()):
        entry = np.asarray(entry)
        batch[name] = np.repeat(entry[None], num_golden, axis=0)
        if np.issubdtype(entry.dtype, np.floating):
            noise = generator.standard_normal(batch[name].shape)
            batch[name] = (batch[name] + noise).astype(np.float32)
    return batch


def _write_npz(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
