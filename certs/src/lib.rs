//! Certificates: see the module list.
