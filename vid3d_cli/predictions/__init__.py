"""Uses of scores: files of predictions, and accuracy on labelled videos."""
