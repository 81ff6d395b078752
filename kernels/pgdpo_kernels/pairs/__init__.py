"""Ops on preference pairs: their errors, and the losses of these."""
