"""Trackers hear every event and decide nothing."""
