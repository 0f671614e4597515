"""Draws eyes, and renders pictures of them in every modality."""
