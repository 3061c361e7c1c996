"""Tables, plots, verdict and export."""
