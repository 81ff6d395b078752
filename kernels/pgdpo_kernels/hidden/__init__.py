"""Ops on the hidden states of a transformer: norm, modulation, gate."""
