"""The model families, a file each, whose class stands in it as `FAMILY`."""
