"""From photos with tags to a trained network."""
