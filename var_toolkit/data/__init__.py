"""Data sets: the synthetic still lifes, and folders of pictures by class."""
