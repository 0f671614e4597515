"""Methods that evaluate.py compares, one file each."""
