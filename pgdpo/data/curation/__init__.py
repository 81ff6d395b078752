"""Which of the prepared pairs are trained on (`data.select`), how much each counts (`data.weight`), easy ones first
(`data.order`), and whether superficial cues give the chosen clips away (`probe`)."""
