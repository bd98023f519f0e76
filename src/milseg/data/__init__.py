"""Photos and tags: images, bags, transforms, sampling, masks, statistics."""
