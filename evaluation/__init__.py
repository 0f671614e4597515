"""Compares registration methods on pairs with known landmarks."""
