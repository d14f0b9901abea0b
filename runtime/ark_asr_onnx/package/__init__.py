"""What a package is: its contract, upstream's, where it is found, its tokenizer."""
