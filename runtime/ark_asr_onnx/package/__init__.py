"""A package: its contract, the published folder, the places where it is found, its tokenizer."""
