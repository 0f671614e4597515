"""From two images to a transform that one can believe in."""
