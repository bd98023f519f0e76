"""What each command does with its settings, one file a command."""
