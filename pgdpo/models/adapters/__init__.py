"""LoRA: added to a transformer, started from a file, written in the names that others read."""
