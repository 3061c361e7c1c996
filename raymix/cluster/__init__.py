"""The only room with Ray: pools of workers, Tune on top."""
