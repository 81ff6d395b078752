"""One self-contained page from a run's files, and the list of runs."""
