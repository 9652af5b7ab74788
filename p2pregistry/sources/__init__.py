"""One place bytes come from each."""
