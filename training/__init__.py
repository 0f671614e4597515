"""Trains a network, and leaves a record of it."""
