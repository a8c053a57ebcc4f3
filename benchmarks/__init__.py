"""What is measured, how, and against whom: `python -m benchmarks NAME`. docs/benchmarks.md holds the results.

A suite is a module of this folder with `run`, which measures and adds rows to a :class:`~benchmarks.record.Record`,
and `report`, which makes tables of rows; `add_arguments` where it has options, and `bars` where something is wanted
of it.
"""
