//! What this kernel allows the programs to do.
