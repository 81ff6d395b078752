"""The ops in eager PyTorch: the fallback, and the baseline of tests and benchmarks."""
