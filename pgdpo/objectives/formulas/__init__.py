"""The losses: one small file a family of objectives, pure functions of a batch of pair errors.

Above each function stand its paper and its formula in words. A new objective is a function here and its line in
`pgdpo.objectives.registry`; tests/objectives/objective_rows.py asks for its formula once more, in numpy.
"""
