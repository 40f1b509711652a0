"""Applications built on `core_rl`; each subpackage is one project."""
