"""Loss terms and the objectives that combine them."""
