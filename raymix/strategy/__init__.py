"""Order of training: strategies turn a mixture and a budget into stages."""
