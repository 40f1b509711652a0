"""Rewards designed by a language model (Ma et al. 2025, arXiv 2511.02094)."""
