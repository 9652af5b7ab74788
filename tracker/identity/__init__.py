"""Who somebody is and what follows from it: accounts, organisations, tokens, rights."""
