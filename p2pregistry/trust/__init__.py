"""Keys and the claims they sign."""
