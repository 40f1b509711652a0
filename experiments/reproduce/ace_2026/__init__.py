"""Dürr et al. 2026, Project Ace: returns of balls of elite play."""
