"""Image transformers of text and image streams that attend to each other, a file for each that shares blocks."""
