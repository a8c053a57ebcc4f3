"""README.md, CONTRIBUTING.md, docs/ and docstrings: what they tell people to do can be done."""
