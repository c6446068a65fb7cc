"""What every output tensor is made of, decided from headers before a weight is read."""
