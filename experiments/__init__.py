"""One file per experiment: a preset, a docstring with command, cost and result, and a main."""
