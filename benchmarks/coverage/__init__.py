"""Suite `coverage`: when on-policy samples and negative gradients matter."""
