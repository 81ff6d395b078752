"""Where weights come from and in which dtypes they are held."""
