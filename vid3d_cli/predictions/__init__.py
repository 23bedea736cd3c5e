"""From scores to what people look at: files of predictions, and accuracy on labelled videos."""
