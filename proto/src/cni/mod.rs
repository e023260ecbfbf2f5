//! Container Network Interface: JSON types and the plugin skeleton.
