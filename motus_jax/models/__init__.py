"""Networks. They know arrays and their own frozen `Config`, nothing of data or training."""
