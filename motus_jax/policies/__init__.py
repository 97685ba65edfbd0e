"""What the trainer trains: one file per policy with the five names `Config`, `build`, `loss`, `sample`
and `batch_spec`. `motus.py` is the worked example; a new policy is a new file here."""
