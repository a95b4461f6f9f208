//! What Blixard decides.
