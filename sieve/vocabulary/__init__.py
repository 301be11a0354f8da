"""The vocabulary of a task: a tokenizer and a model with the tokens that its rows use."""
