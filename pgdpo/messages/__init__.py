"""What a person is told: errors, problems of an input, console lines and bars, numbers in words."""
