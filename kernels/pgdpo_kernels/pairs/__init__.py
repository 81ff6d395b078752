"""Ops on preference pairs: their errors, the losses of these, their noise."""
