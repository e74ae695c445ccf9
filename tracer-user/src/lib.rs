//! podpath.
