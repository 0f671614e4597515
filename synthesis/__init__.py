"""Synthesis of generated data: random eye anatomy, rendered in every modality."""
