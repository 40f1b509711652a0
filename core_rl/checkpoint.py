"""Checkpoints of the whole training state, written by orbax in the background.

A checkpoint is committed by renaming a directory, and the one before is deleted only after that,
so a kill or a full disk at any moment leaves a complete checkpoint. Beside the arrays lies a list
of their names, shapes and types: orbax by itself casts types silently when it restores.

The caller may donate the state to its next computation as soon as `save` returns: arrays on an
accelerator have been copied to the host by then, and on a CPU jax does not reuse a buffer that is
being read.
"""

import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from core_rl.errors import DISK_FULL, UserError

State = TypeVar("State")

# Orbax logs every failure as hundreds of lines before it raises it; the raised error is enough.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class CheckpointError(UserError):
    """A checkpoint cannot be written, or one that was written cannot be read."""


class Checkpointer:
    """The checkpoints in one directory, by epoch; the newest `max_to_keep` are kept.

    With `read_only` nothing in it is touched: another run may be writing there.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        max_to_keep: int = 1,
        *,
        read_only: bool = False,
    ):
        self._directory = Path(directory).absolute()
        self._max_to_keep = max_to_keep
        self._read_only = read_only
        self._pending: int | None = None
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot create {self._directory} for checkpoints: {error.strerror}"
            ) from None
        self._manager = self._open()

    def save(self, epoch: int, state: Any) -> None:
        """Begins to save `state`; an epoch that is already there is left as it is.

        Returns when `state` may be donated. Raises CheckpointError if there is no room, or if the
        save before has failed meanwhile.
        """
        latest = self.latest()
        if latest == epoch:
            return
        if latest is not None and latest > epoch:
            raise ValueError(f"epoch {epoch} is older than the checkpoint of epoch {latest}")
        self._check_space(epoch, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        self._pending = epoch
        try:
            self._manager.save(
                epoch,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), layout=ocp.args.JsonSave(_layout(state))
                ),
            )
        except (OSError, ValueError) as error:
            self._give_up(error)

    def wait(self) -> None:
        """Blocks until the save is complete; raises CheckpointError if it failed."""
        if self._pending is None:
            return
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            self._give_up(error)
        self._pending = None

    def latest(self) -> int | None:
        """The newest complete epoch, after waiting for a save in progress."""
        self.wait()
        return self._manager.latest_step()

    def restore(self, epoch: int, template: State, *, partial: bool = False) -> State:
        """The state of `epoch`, bit by bit.

        `template` has the structure, shapes and types to expect, as from `jax.eval_shape`; leaves
        without a sharding go to the first device. With `partial` it may be a dict of some of the
        state's fields. Raises CheckpointError if the checkpoint holds something else, or is missing
        or damaged.
        """
        self.wait()
        where = f"the checkpoint of epoch {epoch} in {self._directory}"
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or device
            ),
            template,
        )
        manager = self._manager
        try:
            layout = manager.restore(epoch, args=ocp.args.Composite(layout=ocp.args.JsonRestore()))
            saved, needed = layout["layout"], _layout(template)
            if partial:
                fields = tuple(f"{field}/" for field in template)  # pyright: ignore[reportGeneralTypeIssues]
                saved = {name: kind for name, kind in saved.items() if name.startswith(fields)}
            difference = _difference(saved, needed)
            if difference is None and partial:
                return self._restore_part(epoch, abstract)
            if difference is None:
                arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
                return manager.restore(epoch, args=arguments)["state"]
        except Exception as error:  # orbax raises the bare class where data are damaged
            raise CheckpointError(f"{where} cannot be read: {_reason(error)}") from error
        raise CheckpointError(f"{where} is of another configuration: {difference}")

    def _restore_part(self, epoch: int, abstract: Any) -> Any:
        arguments = ocp.args.PyTreeRestore(
            abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(self._directory / str(epoch) / "state", args=arguments)

    def close(self) -> None:
        """Waits and releases orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        if not self._read_only:
            for leftover in self._directory.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(leftover)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._max_to_keep, read_only=self._read_only
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def _check_space(self, epoch: int, needed: int) -> None:
        """Fails now in one line where orbax would fail halfway; sees quotas as well as the disk."""
        try:
            with tempfile.TemporaryFile(dir=self._directory) as file:
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    os.posix_fallocate(file.fileno(), 0, max(needed, 1))
        except OSError as error:
            free = shutil.disk_usage(self._directory).free
            cause = "disk full: " if error.errno in DISK_FULL else ""
            raise CheckpointError(
                f"{cause}the checkpoint of epoch {epoch} needs {needed / 1e6:.1f} MB in "
                f"{self._directory}, which has {free / 1e6:.1f} MB ({error.strerror})"
            ) from None

    def _give_up(self, error: Exception) -> None:
        """Raises what stopped the save; orbax starts afresh, having lost count of its steps."""
        epoch, self._pending = self._pending, None
        self._manager.close()
        self._manager = self._open()
        code = _os_error_code(error)
        cause = "disk full: " if code in DISK_FULL else ""
        raise CheckpointError(
            f"{cause}cannot write the checkpoint of epoch {epoch} in {self._directory}: "
            f"{_reason(error)}"
        ) from error


def _layout(tree: Any) -> dict[str, str]:
    """Name to `type[shape]` of every leaf, in order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _difference(saved: dict[str, str], needed: dict[str, str]) -> str | None:
    for name in {**saved, **needed}:
        if saved.get(name) != needed.get(name):
            return f"{name} is {saved.get(name, 'absent')}, not {needed.get(name, 'absent')}"
    return None


def _os_error_code(error: Exception) -> int | None:
    """The number of the operating system's error; tensorstore hides it in its message."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found.group(1)) if found else None


def _reason(error: Exception) -> str:
    code = _os_error_code(error)
    return os.strerror(code) if code else " ".join(str(error).split())[:200]
