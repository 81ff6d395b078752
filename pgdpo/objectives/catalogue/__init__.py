"""What there is: objectives by standing, as a list, a page and a table."""
