"""Draws pictures of pairs, and HTML pages of pictures and charts."""
