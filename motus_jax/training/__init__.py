"""What the training loop is made of: state, step, optimizer, metrics."""
