"""The JAX core: algorithms, replay, training loop, records. Knows no project."""
