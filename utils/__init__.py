"""The base of the project: errors, settings, devices, names, image and checkpoint files."""
