"""Reads the images of the user, generated and real, and makes training views of them."""
