"""Errors whose message is meant for the person at the command line, not for a debugger."""


class UserError(ValueError):
    """What is wrong, where, and what is allowed, in one line; `core_rl.flags.main` prints it."""

    exit_code = 1


class UsageError(UserError):
    """The command itself is wrong: a flag, its value, or their combination."""

    exit_code = 2
