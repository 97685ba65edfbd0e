"""How good a policy is: held-out metrics and the pictures people look at."""
