"""Pictures of pairs, curves and pages to look at."""
