//! The catalogue of the repository: every file with its checksums, kept current.
