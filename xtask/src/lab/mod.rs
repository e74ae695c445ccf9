//! Labs: clusters of network namespaces with the names, addresses, routes and rules of real ones.
