"""Compares methods of registration on pairs with known landmarks."""
