"""Shipped with raymix: problems with a known optimum, conformance suites, tiny models."""
