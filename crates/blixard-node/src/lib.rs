//! A Blixard node: transport, consensus, images, the agent and the control API.

mod images;
mod transfers;
mod transport;
