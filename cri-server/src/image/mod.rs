//! Images: references, registries, pull, unpack, layers.
