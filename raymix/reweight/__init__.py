"""Inside a training: reweighters move the mixture."""
