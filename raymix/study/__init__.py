"""Between trainings: what counts as better, who is asked next, and the history file."""
