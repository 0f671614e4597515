"""The methods that evaluate.py compares, one file each; see :mod:`evaluation.method_registry`."""
