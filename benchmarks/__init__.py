"""Every figure and how it was got: see README.md. `python -m benchmarks.gpu` is for all that needs a GPU."""
