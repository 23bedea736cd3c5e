"""The HTML report: a page a video, and an overview of a directory of them."""
