"""Curves of a page: what is drawn (panels), from which rows (series), and how (svg)."""
