"""Fuchs et al. 2021: the time trial with SAC."""
