"""Processes that work together: who they are, and what they settle between them."""
