"""Data sets: the synthetic still lifes, and folders of images by class."""
