//! bench/testbed.
