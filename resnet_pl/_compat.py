"""What is needed of other libraries and not documented there: each entry says why, and a test tells when it can go."""

# Key and value that LightningCLI adds to the hyperparameters it saves. `load_from_checkpoint` builds the modules that
# are described there only if it finds them, and has no argument to ask for the same. Lightning 2.0 to 2.6.
INSTANTIATOR = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
