"""The losses: one small file a family of objectives, pure functions of a batch of pair errors."""
