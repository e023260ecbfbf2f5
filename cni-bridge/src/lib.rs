//! CNI plugins.
