"""The sweeper's configuration, found by Hydra in every app."""
