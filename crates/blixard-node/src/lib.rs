//! A Blixard node.
