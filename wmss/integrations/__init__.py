"""The method inside other people's trainers."""
