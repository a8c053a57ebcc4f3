"""What is measured, how, and against whom: `python -m benchmarks NAME`. docs/benchmarks.md holds the results."""
