"""What Δ is: measures of groups of tensors, a verdict, a prediction, and the report."""
