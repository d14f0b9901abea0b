"""What a package is: its contract, the published folder, where it is found, its tokenizer."""
