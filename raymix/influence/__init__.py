"""How a domain's share would have moved the eval losses: gradients and curvature, in torch."""
