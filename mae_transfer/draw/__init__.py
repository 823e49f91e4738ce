"""Every picture that the project makes."""
