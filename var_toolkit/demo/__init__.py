"""The page of `vargen demo`: what draws (plans, studio, live, painting), and what shows it (page, server)."""
