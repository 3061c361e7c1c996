"""Between trainings: searchers propose mixtures from the history."""
