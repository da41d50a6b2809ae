"""Tables and plots of results and run folders. Does not import torch."""
