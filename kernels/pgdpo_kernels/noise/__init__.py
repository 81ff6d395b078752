"""Noise of preference pairs and of other groups that share it."""
