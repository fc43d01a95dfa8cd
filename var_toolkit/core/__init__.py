"""What every method shares: schedules, plans, the engine that runs them, caches, noise, filters. No network is here."""
