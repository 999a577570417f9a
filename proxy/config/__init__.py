"""The configuration: files, environment, references to secrets, and the rules for them."""
