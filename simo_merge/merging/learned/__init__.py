"""Methods whose coefficients are learned by gradient descent, with or without labels."""
