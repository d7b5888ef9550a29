//! bin.

fn main() {}
