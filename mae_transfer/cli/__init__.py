"""The command line. One module per command; main.py runs them, parser.py and training.py hold what they share."""
