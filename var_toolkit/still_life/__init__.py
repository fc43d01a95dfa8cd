"""The toy world: still lifes drawn by ray tracing, their names, and the networks that judge them."""
