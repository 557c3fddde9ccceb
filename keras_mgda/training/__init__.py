"""Keras's side of a step: tasks and their losses, labels, and the update."""
