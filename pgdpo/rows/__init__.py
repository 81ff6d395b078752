"""One row of preference data, a manifest of such rows, and how other formats become one."""
