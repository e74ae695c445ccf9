//! podpath's workshop: builds the kernel object, brings up labs, runs tests and benches.

pub mod lab;
