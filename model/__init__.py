"""The networks, their settings and their initial weights."""
