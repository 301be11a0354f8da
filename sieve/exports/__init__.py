"""Write a model in every export format, load it again, and write the task files beside it."""
