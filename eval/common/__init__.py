"""What all of eval shares: models and prompts, settings, runs on disk, statistics and clocks."""
