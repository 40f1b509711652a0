"""Wurman et al. 2022, Gran Turismo Sophy: time trial, ablations, championship."""
