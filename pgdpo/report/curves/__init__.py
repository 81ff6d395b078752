"""Curves of a page: from rows (series) to drawings (svg)."""
