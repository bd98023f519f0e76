"""Networks: cast classifiers, where their weights come from, which of their rows a new task takes over."""
