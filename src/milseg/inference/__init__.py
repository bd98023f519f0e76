"""From a trained model and a photo to its mask."""
