"""Trains a network, and records the run."""
