"""Files on a disk or behind a URL: found, read within limits, written whole; tables in any of their formats."""
