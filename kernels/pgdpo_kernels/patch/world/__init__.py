"""Cosmos, Sana and what was made beside them."""
