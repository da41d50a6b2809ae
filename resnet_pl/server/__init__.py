"""The web page and the JSON endpoint of `serve`."""
