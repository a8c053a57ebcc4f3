"""Bad input, made by the thousand: what the product is given must work, or be refused in one sentence of its own.

python -m tests.fuzz --minutes 2                every target in turn, then a table of inputs and faults; status 1 if any
python -m tests.fuzz --minutes 5 --only calls   those of one target
python -m pytest tests/fuzz                     a few examples of each, and that planted faults are found

A target is a Hypothesis strategy and a check of one example, which raises :class:`tests.fuzz.outcomes.Fault`. Start at
``targets.py``, which lists them all.
"""
