"""Ma et al. 2025, automated reward design for Gran Turismo."""
