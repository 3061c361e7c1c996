"""Examples: read, templated, tokenised once, memory-mapped, drawn by the mixture contract."""
