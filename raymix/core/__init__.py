"""Values and maths: NumPy only. Everything above speaks these words."""
