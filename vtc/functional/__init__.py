"""Pure functions of tensors: no methods, no models."""
