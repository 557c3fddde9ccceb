"""Replicas, workers and strategies. Knows nothing of tasks or weightings."""
