"""Ops on heads: rows of hidden states that attention cuts into heads, their norms, rotations and gates."""
