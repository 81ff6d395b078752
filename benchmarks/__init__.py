"""Speed and exactness of the fused ops. `python -m benchmarks.suite` from a checkout, or `pgdpo bench`."""
