"""Wang et al. 2025, Residual-MPPI: locomotion and racing."""
