"""The frozen towers and the stacks that they form."""
